"""Merged and unmerged models agree, and a merged one is an ordinary model again.

Tolerance 1e-4 of the largest logit; measured 1e-6 (fp32 products in another order).
"""

import pytest
import torch
from support.checkpoints import full_section, our_logits, randomise, relative_error, their_logits
from support.models import hf_twin, tiny_model
from support.quantised_models import KINDS, dequantised_twin, quantised_tiny

from ms4_train.adapters import adapter_tensors, attach, merge
from ms4_train.errors import AdapterError
from ms4_train.weights import load_model, save_model


def adapted(section, dtype=torch.float32):
    model = tiny_model(dtype=dtype)
    attach(model, section)
    randomise(adapter_tensors(model))
    return model


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"target_parameters": []}, {"target_modules": []}])
def test_merged_equals_unmerged(changes):
    model = adapted(full_section(**changes))
    before, base = our_logits(model), our_logits(tiny_model())
    merge(model)
    assert relative_error(our_logits(model), before) < 1e-4
    assert relative_error(base, before) > 1e-2
    assert list(model.state_dict()) == list(tiny_model().state_dict())
    assert not adapter_tensors(model)


def test_merged_model_is_saved_and_read_by_transformers(tmp_path):
    model = adapted(full_section())
    before = our_logits(model)
    merge(model)
    save_model(model.state_dict(), tmp_path, config=model.config)
    assert relative_error(their_logits(hf_twin(load_model(tmp_path, dtype=torch.float32))), before) < 1e-4


def test_merge_in_bf16_rounds_once():
    exact = adapted(full_section())
    merge(exact)
    coarse = tiny_model().bfloat16()
    wide = tiny_model()
    wide.load_state_dict(coarse.state_dict())
    for model in (coarse, wide):
        attach(model, full_section())
    randomise(adapter_tensors(wide))
    for name, tensor in adapter_tensors(wide).items():
        tensor.copy_(tensor.bfloat16())
        adapter_tensors(coarse)[name].copy_(tensor)
    merge(coarse)
    merge(wide)
    for (name, found), expected in zip(coarse.named_parameters(), wide.parameters(), strict=True):
        assert torch.equal(found, expected.bfloat16()), name


def test_attach_after_merge_works_and_merging_nothing_is_refused():
    model = adapted(full_section())
    merge(model)
    with pytest.raises(AdapterError, match="no adapter"):
        merge(model)
    attach(model, full_section())
    assert adapter_tensors(model)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_not_merged_into(kind):
    model = quantised_tiny(kind)
    attach(model, full_section(target_parameters=[]))
    randomise(adapter_tensors(model))
    before = our_logits(model)
    with pytest.raises(AdapterError, match="load the model dequantised"):
        merge(model)
    assert torch.equal(our_logits(model), before)  # the adapter is there still


@pytest.mark.parametrize("kind", KINDS)
def test_the_dequantised_model_takes_the_adapter_of_the_quantised_one(kind):
    """The way that the refusal names."""
    model = quantised_tiny(kind)
    plain = dequantised_twin(model)
    for each in (model, plain):
        attach(each, full_section())
        randomise(adapter_tensors(each))
    merge(plain)
    assert relative_error(our_logits(plain), our_logits(model)) < 1e-4
