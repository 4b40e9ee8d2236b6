"""Attaching changes nothing until trained, trains only the adapter, and does not depend on which experts are held."""

import math

import pytest
import torch
from support.checkpoints import ATTENTION, STACKS, full_section, our_logits, randomise, relative_error, saved_tiny, some_ids
from support.models import tiny_model
from support.quantised_models import KINDS, quantised_tiny

from ms4_kernels.quantised import Fp8Weight
from ms4_train.adapters import adapter_tensors, attach, attach_report
from ms4_train.adapters.attach import adapted_name, adapter_parameters, detach, lora_scale
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.model import DenseLatentCache, SequenceLayout
from ms4_train.model.quantised import is_quantised
from ms4_train.weights import load_model


def test_fresh_adapter_changes_nothing_and_everything_else_is_frozen():
    model = tiny_model()
    before = our_logits(model)
    report = attach(model, full_section())
    assert torch.equal(our_logits(model), before)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(trained) == set(adapter_tensors(model))
    assert report.trainable == sum(parameter.numel() for parameter in trained.values())
    assert report.total == sum(parameter.numel() for parameter in model.parameters())
    assert report.percent == pytest.approx(100 * report.trainable / report.total)


def test_report_counts_modules_and_parameters_of_each_target():
    section = AdapterSection(r=2, target_modules=["q_a_proj", "layers.1.self_attn.o_proj"], target_parameters=["experts.down_proj"])
    model = tiny_model()
    report = attach(model, section)
    assert [(row.target, row.kind, row.modules, row.parameters) for row in report.rows] == [
        ("q_a_proj", "linear", 2, 2 * 2 * (64 + 24)),
        ("layers.1.self_attn.o_proj", "linear", 1, 2 * (64 + 64)),
        ("experts.down_proj", "experts", 2, 2 * 8 * 2 * (32 + 64)),
    ]
    assert report.trainable == sum(row.parameters for row in report.rows)
    assert attach_report(model, section) == report


def test_start_is_pefts():
    """Same bound and zero B as PEFT's own initialisation."""
    model = tiny_model()
    attach(model, full_section(r=64))
    for name, tensor in adapter_tensors(model).items():
        if "lora_B" in name or name.endswith(("_b_eir", "_b_edr")):
            assert not tensor.any(), name
        else:
            bound = 1 / math.sqrt(tensor.shape[-1])
            assert bound * 0.95 < tensor.abs().max() <= bound, name
            assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_gradients_reach_every_adapter_parameter_and_nothing_else():
    model = tiny_model().train()
    attach(model, full_section())
    randomise(adapter_tensors(model))
    ids_t = some_ids(200)
    logits_tv = model.logits(model(ids_t, SequenceLayout.from_lengths([200])))
    torch.nn.functional.cross_entropy(logits_tv[:-1], ids_t[1:]).backward()
    adapters = set(adapter_tensors(model))
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in adapters), name


def test_gradients_equal_pefts():
    """Relative 1e-3 of the largest gradient of a parameter, as parity with transformers asks; fp32 sums in another order."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from support.models import hf_twin

    from ms4_train.adapters.peft_format import to_peft

    section = full_section()
    model = tiny_model().train()
    attach(model, section)
    randomise(adapter_tensors(model))
    settings = LoraConfig(r=3, lora_alpha=7, target_modules=section.target_modules, target_parameters=section.target_parameters)
    oracle = get_peft_model(hf_twin(tiny_model()), settings)
    set_peft_model_state_dict(oracle, to_peft(adapter_tensors(model)))
    ids_t = some_ids()
    layout = SequenceLayout.from_lengths([len(ids_t)])
    torch.nn.functional.cross_entropy(model.logits(model(ids_t, layout))[:-1], ids_t[1:]).backward()
    torch.nn.functional.cross_entropy(oracle(ids_t[None]).logits[0, :-1], ids_t[1:]).backward()
    found = to_peft({name: parameter.grad for name, parameter in adapter_parameters(model).items() if parameter.grad is not None})
    expected = {name.replace(".default", ""): value.grad for name, value in oracle.named_parameters() if value.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-3 * gradient.abs().max(), name


def test_values_depend_on_the_seed_and_not_on_the_experts_held(tmp_path):
    saved_tiny(tmp_path)

    def values(seed, expert_range=None):
        torch.manual_seed(seed)
        model = load_model(tmp_path, dtype=torch.float32, expert_range=expert_range)
        torch.rand(7)  # numbers drawn before must not matter
        attach(model, full_section())
        return adapter_tensors(model)

    whole, part, other = values(3), values(3, (5, 8)), values(4)
    for name, tensor in whole.items():
        assert torch.equal(part[name], tensor[5:8] if ".mlp.experts.lora." in name else tensor), name
    assert any(not torch.equal(other[name], whole[name]) for name in whole)


def test_adapter_has_the_models_type():
    model = tiny_model(dtype=torch.bfloat16)
    attach(model, full_section())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def decoded(model):
    """Logits of the last of 20 tokens, through the cache and prepared absorbed attention."""
    cache = DenseLatentCache(model.config, slots=1, max_len=32)
    ids_t = some_ids(20)
    with torch.no_grad():
        model(ids_t[:19], SequenceLayout((19,), slots=(0,)), cache)
        model.prepare_decode()
        return model.logits(model(ids_t[19:], SequenceLayout((1,), starts=(19,), slots=(0,)), cache))[0]


def test_absorbed_decode_follows_the_adapter_on_and_off():
    """LoRA on kv_b acts in both forms of attention, and prepared matrices do not outlive a change of adapter.

    Tolerance 1e-4 of the largest logit: the two forms add in another order.
    """
    model = tiny_model()
    ids_t, base = some_ids(20), decoded(tiny_model())
    assert torch.allclose(decoded(model), base)
    attach(model, AdapterSection(r=3, target_modules=["kv_b_proj"]))
    randomise(adapter_tensors(model))
    with torch.no_grad():
        expanded = model.logits(model(ids_t, SequenceLayout.from_lengths([20])))[-1]
    assert relative_error(decoded(model), expanded) < 1e-4
    assert relative_error(base, expanded) > 1e-2
    detach(model)
    assert relative_error(decoded(model), base) < 1e-6


def test_detached_model_is_the_base_again():
    model = tiny_model()
    before, names = our_logits(model), list(model.state_dict())
    attach(model, full_section())
    randomise(adapter_tensors(model))
    assert not torch.equal(our_logits(model), before)
    detach(model)
    assert torch.equal(our_logits(model), before)
    assert list(model.state_dict()) == names


def test_second_adapter_and_wrong_target_are_refused_and_leave_the_model_alone():
    model = tiny_model()
    with pytest.raises(AdapterError, match="q_proj"):
        attach(model, AdapterSection(target_modules=["o_proj", "q_proj"]))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not adapter_tensors(model)
    attach(model, AdapterSection(target_modules=ATTENTION))
    with pytest.raises(AdapterError, match="already"):
        attach(model, AdapterSection(target_modules=ATTENTION))


def test_scale_and_owner():
    assert lora_scale(AdapterSection(r=16, lora_alpha=32)) == 2.0
    assert lora_scale(AdapterSection(r=16, lora_alpha=32, use_rslora=True)) == 8.0
    model = tiny_model()
    attach(model, AdapterSection(target_modules=["o_proj"], target_parameters=STACKS))
    assert {adapted_name(name).rpartition(".")[2] for name in adapter_tensors(model)} == {"o_proj", "gate_up_proj", "down_proj"}


def test_dropout_is_active_in_training_only():
    model = tiny_model()
    attach(model, AdapterSection(r=4, lora_dropout=0.5, target_modules=["o_proj"]))
    randomise(adapter_tensors(model))
    assert torch.equal(our_logits(model), our_logits(model))
    model.train()
    assert not torch.equal(our_logits(model), our_logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_takes_the_same_adapter_as_a_plain_one(kind):
    """Names, types, starting values and report; the compute type decides the adapter's."""
    for dtype in (torch.float32, torch.bfloat16):
        model, plain = quantised_tiny(kind, dtype=dtype), tiny_model(dtype=dtype)
        torch.manual_seed(9)
        report = attach(model, full_section())
        torch.manual_seed(9)
        assert attach(plain, full_section()) == report
        ours, theirs = adapter_tensors(model), adapter_tensors(plain)
        assert ours.keys() == theirs.keys()
        assert all(ours[name].dtype == dtype and torch.equal(ours[name], theirs[name]) for name in theirs)
        detach(model)
        assert not adapter_parameters(model)
        assert is_quantised(model)


def test_attaching_decodes_no_quantised_weight(monkeypatch):
    model = quantised_tiny("fp8")
    monkeypatch.setattr(Fp8Weight, "dequantise", lambda *_: pytest.fail("a weight was decoded"))
    attach(model, full_section())
