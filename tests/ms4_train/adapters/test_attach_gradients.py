"""For every target and preset the adapter's gradients are those of explicit ``W + s B A``, and merging, unmerging, detaching agree.

Tolerances are shares of the largest value, fp32 sums in another order: 1e-4, measured 2e-5 at most.
"""

import pytest
import torch
from support.adapted import adapted, explicit_gradients, gradients, logits_of, section
from support.checkpoints import ATTENTION, SHARED, STACKS, relative_error
from support.multimodal import tiny_multimodal

from ms4_train.adapters import adapter_tensors, detach, merge, unmerge
from ms4_train.adapters.attach import lora_scale
from ms4_train.config.schema import PRESETS

CLOSE = 1e-4
EVERY = {
    **{f"preset {name}": {"preset": name} for name in PRESETS},
    **{target: {"target_modules": [target]} for target in [*ATTENTION, *SHARED, *PRESETS["vision"][0], "lm_head", "embed_tokens"]},
    **{target: {"target_modules": [], "target_parameters": [target]} for target in [*STACKS, "mlp.gate.weight"]},
    "router and all": {
        "target_modules": ["*_proj", "lm_head", "embed_tokens", "kv_a_proj_with_mqa"],
        "target_parameters": [*STACKS, "mlp.gate.weight"],
        "modules_to_save": ["multi_modal_projector", "model.norm"],
        "rank_pattern": {"self_attn.o_proj": 2, "experts.down_proj": 3},
        "alpha_pattern": {"experts.gate_up_proj": 3.0, "embed_tokens": 1.0},
        "use_rslora": True,
        "lora_alpha": 2.0,
    },
}


@pytest.mark.parametrize("name", EVERY)
def test_gradients_equal_the_explicit_sum(name):
    settings = section(**EVERY[name])
    model = adapted(settings, vision=True)
    values = {key: value.clone() for key, value in adapter_tensors(model).items()}
    found = gradients(model)
    expected = explicit_gradients(
        tiny_multimodal(), values, lambda owner: lora_scale(settings, f"{owner}.weight" if owner.endswith("mlp.gate") else owner)
    )
    assert found.keys() == values.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient.abs().max() > 0, key
        assert relative_error(found[key], gradient) < CLOSE, key


@pytest.mark.parametrize("name", EVERY)
def test_merged_unmerged_and_detached_agree(name):
    model = adapted(section(**EVERY[name]), vision=True)
    plain = tiny_multimodal()
    base, trained = logits_of(plain), logits_of(model)
    assert relative_error(base, trained) > 30 * CLOSE  # the adapter does something
    report = merge(model, keep=True)
    assert report.weights
    assert relative_error(logits_of(model), trained) < CLOSE
    unmerge(model)
    assert torch.equal(logits_of(model), trained)
    merge(model, keep=True)
    detach(model)
    assert torch.equal(logits_of(model), base)
    assert list(model.state_dict()) == list(plain.state_dict())
    again = adapted(section(**EVERY[name]), vision=True)
    merge(again)
    assert relative_error(logits_of(again), trained) < CLOSE
    assert list(again.state_dict()) == list(plain.state_dict())
