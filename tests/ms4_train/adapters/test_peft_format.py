"""The layout of a PEFT file against PEFT itself: names, shapes and the delta its wrapper computes from them."""

import pytest
import torch
from support.checkpoints import STACKS, full_section, randomise
from support.models import hf_twin, tiny_config, tiny_model

from ms4_train.adapters import adapter_tensors, attach
from ms4_train.adapters.peft_format import (
    from_peft,
    is_adapter_name,
    is_vision_name,
    outer_name,
    own_name,
    stored_modules,
    stored_name,
    to_peft,
)
from ms4_train.adapters.stack_layout import pack_a, pack_b
from ms4_train.errors import AdapterError
from ms4_train.weights.reading.loading import expected_shapes

EXPERTS = 8
ALL_STACKS = {(f"model.layers.{layer}.mlp.experts", stack) for layer in range(2) for stack in ("gate_up_proj", "down_proj")}


def adapted(**changes):
    model = tiny_model()
    attach(model, full_section(**changes))
    randomise(adapter_tensors(model))
    return model


@pytest.mark.parametrize("changes", [{}, {"target_parameters": STACKS[:1]}, {"target_parameters": STACKS[1:]}, {"target_parameters": []}])
def test_names_and_shapes_are_those_peft_writes(changes):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    section = full_section(**changes)
    settings = LoraConfig(r=3, target_modules=section.target_modules, target_parameters=section.target_parameters or None)
    theirs = get_peft_model_state_dict(get_peft_model(hf_twin(tiny_model()), settings))
    ours = to_peft(adapter_tensors(adapted(**changes)))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert all(value.is_contiguous() for value in ours.values())


def test_packed_stack_gives_peft_the_same_delta():
    """PEFT's own ParamWrapper, filled with packed tensors, computes scale * B_e A_e of every expert."""
    from peft import LoraConfig, get_peft_model

    model = adapted(target_modules=[], target_parameters=STACKS[:1])
    wrapped = get_peft_model(hf_twin(tiny_model()), LoraConfig(r=3, lora_alpha=7, target_modules=[], target_parameters=STACKS[:1]))
    wrapper = wrapped.base_model.model.model.layers[1].mlp.experts
    tensors = adapter_tensors(model)
    a_eri = tensors["model.layers.1.mlp.experts.lora.gate_up_a_erd"]
    b_eor = tensors["model.layers.1.mlp.experts.lora.gate_up_b_eir"]
    with torch.no_grad():
        wrapper.lora_A["default"].weight.copy_(pack_a(a_eri))
        wrapper.lora_B["default"].weight.copy_(pack_b(b_eor))
        assert torch.allclose(wrapper.get_delta_weight("default"), 7 / 3 * torch.einsum("eor,eri->eoi", b_eor, a_eri), atol=1e-6)


def test_both_directions_are_inverse():
    tensors = adapter_tensors(adapted())
    stored = to_peft(tensors)
    again = from_peft(stored, stacks=ALL_STACKS, num_experts=EXPERTS)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert {stored_name(name, ALL_STACKS) for name in tensors} == set(stored)
    assert len(stored_modules(stored)) == len(stored) // 2


def test_names_of_base_weights_are_no_adapter_names():
    assert not any(is_adapter_name(name) for name in expected_shapes(tiny_config()))
    assert all(is_adapter_name(name) for name in adapter_tensors(adapted()))
    with pytest.raises(AdapterError, match="not an adapter parameter"):
        to_peft({"model.norm.weight": torch.zeros(1)})


def test_tensor_that_the_experts_cannot_share_is_refused():
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    with pytest.raises(AdapterError, match="8 experts cannot share"):
        from_peft({key: torch.zeros(25, 4)}, stacks=ALL_STACKS, num_experts=EXPERTS)


def test_parameter_under_two_names_is_refused():
    tail = "layers.0.self_attn.o_proj.lora_A.weight"
    stored = {f"base_model.model.model.{tail}": torch.zeros(1), f"base_model.model.model.language_model.{tail}": torch.zeros(1)}
    with pytest.raises(AdapterError, match="stored twice"):
        from_peft(stored, stacks=set(), num_experts=EXPERTS)


@pytest.mark.parametrize(
    ("ours", "outer"),
    [
        ("model.layers.3.self_attn.o_proj", "model.language_model.layers.3.self_attn.o_proj"),
        ("model.embed_tokens", "model.language_model.embed_tokens"),
        ("vision_tower.transformer.layers.0.attention.q_proj", "model.vision_tower.transformer.layers.0.attention.q_proj"),
        ("multi_modal_projector", "model.multi_modal_projector"),
        ("lm_head", "lm_head"),
    ],
)
def test_names_of_the_whole_model(ours, outer):
    assert outer_name(ours, whole_model=True) == outer
    assert outer_name(ours, whole_model=False) == ours
    for stored in (ours, outer):
        assert own_name(f"base_model.model.{stored}") == ours
    assert is_vision_name(ours) == ("vision" in ours or "modal" in ours)
