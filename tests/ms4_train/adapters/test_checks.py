"""Ranks and scales by pattern, and what a section may not ask for on a model; the model is then untouched."""

import math

import pytest
from support.models import tiny_model
from support.quantised_models import quantised_tiny

from ms4_train.adapters import adapter_tensors, attach
from ms4_train.adapters.checks import lora_scale, rank_of
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError

Q = "model.layers.1.self_attn.q_a_proj"


def test_patterns_decide_rank_and_scale_by_the_end_of_a_name():
    section = AdapterSection(r=16, lora_alpha=32, rank_pattern={"q_a_proj": 4}, alpha_pattern={"layers.1.self_attn.q_a_proj": 6})
    assert (rank_of(section, Q), lora_scale(section, Q)) == (4, 1.5)
    assert lora_scale(section, Q.replace("1", "0")) == 8.0
    assert lora_scale(section, Q.replace("q_a", "q_b")) == 2.0
    assert lora_scale(section) == 2.0
    assert lora_scale(section.model_copy(update={"use_rslora": True}), Q) == 3.0
    assert lora_scale(AdapterSection(r=7, use_rslora=True), Q) == 32 / math.sqrt(7)


def test_ranks_follow_the_patterns_on_every_kind():
    model = tiny_model()
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
    pattern = {"q_a_proj": 2, "experts.down_proj": 3, "gate.weight": 5, "embed_tokens": 7}
    attach(model, AdapterSection(r=4, target_modules=["q_a_proj", "o_proj", "embed_tokens"], target_parameters=names, rank_pattern=pattern))
    tensors = adapter_tensors(model)
    layer = "model.layers.0."
    found = {name.removeprefix(layer): tensor.shape for name, tensor in tensors.items() if name.startswith(layer)}
    assert found["self_attn.q_a_proj.lora_A.default.weight"] == (2, 64)
    assert found["self_attn.o_proj.lora_A.default.weight"] == (4, 64)
    assert found["mlp.experts.lora.gate_up_a_erd"] == (8, 4, 64)
    assert found["mlp.experts.lora.down_a_ern"] == (8, 3, 32)
    assert found["mlp.gate.lora_B.default.weight"] == (8, 5)
    assert tensors["model.embed_tokens.lora_embedding_A.default"].shape == (7, 512)


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"rank_pattern": {"q_b_porj": 2}}, "adapter.rank_pattern", "matches no target"),
        ({"alpha_pattern": {"lm_head": 2}}, "adapter.alpha_pattern", "matches no target"),
        ({"rank_pattern": {"o_proj": 2, "self_attn.o_proj": 4}}, "adapter.rank_pattern", "both match"),
        ({"target_modules": ["embed_tokens"], "use_dora": True}, "adapter.use_dora", "embedding"),
        ({"target_modules": ["embed_tokens"], "init_lora_weights": "pissa"}, "adapter.init_lora_weights", "embedding"),
        ({"target_modules": ["lm_head"], "use_dora": True, "lora_dropout": 0.1}, "adapter.lora_dropout", "head"),
        ({"r": 25, "init_lora_weights": "olora"}, "adapter.r", "rank 25"),
    ],
)
def test_what_is_not_computed_is_refused_before_anything_changes(values, key, words):
    model = tiny_model()
    before = list(model.state_dict())
    with pytest.raises(AdapterError, match=words) as caught:
        attach(model, AdapterSection(**values))
    assert caught.value.key == key
    assert caught.value.fix
    assert list(model.state_dict()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_equal_values_of_two_patterns_are_no_conflict():
    attach(tiny_model(), AdapterSection(rank_pattern={"o_proj": 2, "self_attn.o_proj": 2}))


@pytest.mark.parametrize("values", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_values_of_quantised_weights_are_not_taken(values):
    with pytest.raises(AdapterError, match=r"quantised.*model\.dequantize: true"):
        attach(quantised_tiny("fp8"), AdapterSection(**values))
    attach(quantised_tiny("fp8"), AdapterSection(init_lora_weights="gaussian"))  # needs none


def test_starts_that_change_the_base_share_a_model_with_no_other():
    for first, second in (("pissa", "default"), ("default", "olora")):
        model = tiny_model()
        attach(model, AdapterSection(r=4, init_lora_weights=first))
        with pytest.raises(AdapterError, match="cannot share a model"):
            attach(model, AdapterSection(r=4, init_lora_weights=second), name="second")


def test_module_with_an_adapter_is_not_saved_whole_by_another():
    model = tiny_model()
    attach(model, AdapterSection(target_modules=["lm_head"]))
    with pytest.raises(AdapterError, match="another adapter is on it"):
        attach(model, AdapterSection(target_modules=["o_proj"], modules_to_save=["lm_head"]), name="second")
