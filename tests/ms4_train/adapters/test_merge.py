"""Merged and unmerged models agree, and a merged one is an ordinary model again.

Tolerance 1e-4 of the largest logit; measured 1e-6 (fp32 products in another order).
"""

import pytest
import torch
from support.checkpoints import full_section, our_logits, randomise, relative_error, their_logits
from support.models import hf_twin, tiny_model
from support.quantised_models import KINDS, dequantised_twin, quantised_tiny

from ms4_train.adapters import adapter_tensors, attach, merge, unmerge
from ms4_train.adapters.merge import MergeReport, is_merged
from ms4_train.adapters.several import set_active_adapters
from ms4_train.config.schema import AdapterSection
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


def test_report_says_what_rounding_cost():
    """In fp32 nothing; in bf16 half a unit in the last place (2^-9 of a value), which is a larger share of the adapter's small change."""
    exact, coarse = adapted(full_section()), adapted(full_section(), dtype=torch.bfloat16)
    weights = 2 * (5 + 3 + 2)
    report = merge(exact)
    assert (report.weights, report.max_error) == (weights, 0.0)
    report = merge(coarse)
    largest = max(float(parameter.detach().abs().max()) for parameter in coarse.parameters())
    assert report.weights == weights
    assert 0 < report.max_error <= largest * 2**-8
    assert 2**-12 < report.relative_error < 2**-8
    assert report.lost_change > report.relative_error
    assert f"{report.max_error:.2e}" in report.line()


def test_report_is_plain_arithmetic():
    report = MergeReport()
    report.add(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]), torch.tensor([1.25, 2.0]))
    assert report.max_error == 0.25
    assert report.lost_change == 0.5
    assert report.relative_error == pytest.approx(0.25 / 2.5)
    assert MergeReport().relative_error == MergeReport().lost_change == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerging_gives_every_bit_back_and_the_adapter_acts_again(dtype):
    model = adapted(full_section(), dtype)
    before, logits = {name: value.clone() for name, value in model.state_dict().items()}, our_logits(model)
    for _ in range(3):
        merge(model, keep=True)
        assert is_merged(model)
        if dtype == torch.float32:
            assert relative_error(our_logits(model), logits) < 1e-4
        with pytest.raises(AdapterError, match="merged already"):
            merge(model, keep=True)
        unmerge(model)
    assert not is_merged(model)
    assert torch.equal(our_logits(model), logits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(AdapterError, match="not merged"):
        unmerge(model)


def test_merged_model_takes_no_further_adapter():
    model = adapted(full_section())
    merge(model, keep=True)
    with pytest.raises(AdapterError, match="merged"):
        attach(model, full_section(), name="second")
    with pytest.raises(AdapterError, match="merged"):
        set_active_adapters(model, [])


def test_several_are_merged_as_their_sum_and_saved_modules_take_their_place():
    model = adapted(full_section(modules_to_save=["lm_head"]))
    attach(model, full_section(r=2), name="second")
    randomise(adapter_tensors(model, "second"))
    set_active_adapters(model, ["default", "second"])
    before = our_logits(model)
    trained = model.lm_head.weight.detach().clone()
    merge(model)
    assert relative_error(our_logits(model), before) < 1e-4
    assert torch.equal(model.lm_head.weight, trained)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_start_that_changed_the_base_is_merged_once(start):
    model = tiny_model()
    attach(model, AdapterSection(r=4, init_lora_weights=start))
    before = our_logits(model)
    merge(model)
    assert relative_error(our_logits(model), before) < 1e-4
    assert relative_error(our_logits(model), our_logits(tiny_model())) < 1e-4  # untrained, so the base again
