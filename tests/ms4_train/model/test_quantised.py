"""Modules that hold quantised weights: what casts do to them, what others see of them, how they take a parameter's place."""

from __future__ import annotations

import copy

import pytest
import torch
from support.models import tiny_config, tiny_model
from support.quantised import fp8_weight, nvfp4_weight
from support.quantised_models import KINDS, is_quantised_in, quantised_tiny
from torch import nn

from ms4_train.model import Mistral4ForCausalLM, SequenceLayout
from ms4_train.model.quantised import (
    QuantisedLinear,
    QuantisedStack,
    is_quantised,
    logical_weights,
    num_parameters,
    put_quantised,
    quantised_bytes,
    quantised_modules,
)

MAKERS = pytest.mark.parametrize("make", [fp8_weight, nvfp4_weight])
CASTS = {
    "to bf16": lambda module: module.to(torch.bfloat16),
    "bfloat16()": lambda module: module.bfloat16(),
    "half()": lambda module: module.half(),
    "double()": lambda module: module.double(),
    "to bf16 and back": lambda module: module.bfloat16().float(),
}


def same_parts(a, b):
    pairs = zip(a.tensors, b.tensors, strict=True)
    return type(a) is type(b) and all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in pairs)


@MAKERS
@pytest.mark.parametrize("cast", CASTS)
def test_casts_change_the_compute_type_and_not_one_bit_of_the_weight(make, cast):
    weight = make(24, 32)
    for module in (QuantisedLinear(weight, torch.float32), QuantisedStack(make(4, 24, 32), torch.float32)):
        before = copy.deepcopy(module.value())
        CASTS[cast](nn.Sequential(module))
        assert same_parts(module.value(), before)
        expected = {"half()": torch.float16, "double()": torch.float64, "to bf16 and back": torch.float32}.get(cast, torch.bfloat16)
        assert module.dtype == expected


def test_control_a_scale_held_as_fp32_would_be_rounded():
    module = nn.Module()
    module.register_buffer("scale", torch.tensor([1.2345678]))
    assert float(module.bfloat16().scale) != float(torch.tensor(1.2345678))


@MAKERS
def test_is_a_linear_layer_to_others(make):
    weight = make(24, 32)
    module = QuantisedLinear(weight, torch.bfloat16)
    assert isinstance(module, nn.Linear)
    assert (module.in_features, module.out_features, module.bias) == (32, 24, None)
    assert list(module.parameters()) == []
    assert torch.equal(module.weight, weight.dequantise(torch.bfloat16))
    assert module.weight.device == module.device == torch.device("cpu")
    x = torch.randn(5, 32)
    assert torch.equal(module(x), nn.functional.linear(x, weight.dequantise(torch.float32)))  # in the type of the input
    assert type(weight).__name__ in repr(module)
    assert "in_features=32, out_features=24" in repr(module)
    with pytest.raises(TypeError):
        module.reset_parameters()


@MAKERS
def test_state_dict_goes_round(make):
    weight, other = make(24, 32), make(24, 32)
    source, target = QuantisedLinear(weight, torch.bfloat16), QuantisedLinear(other, torch.float32)
    state = source.state_dict()
    assert not any(tensor.is_floating_point() for tensor in state.values())
    target.load_state_dict(state)
    assert same_parts(target.value(), weight)
    assert target.dtype == torch.float32


@MAKERS
def test_built_without_memory_and_filled_later(make):
    weight = make(4, 24, 32)
    module = QuantisedStack(weight.to("meta"), torch.bfloat16)
    assert (module.device.type, module.shape, module.dtype) == ("meta", (4, 24, 32), torch.bfloat16)
    module.load_state_dict(QuantisedStack(weight, torch.float32).state_dict(), assign=True)
    assert same_parts(module.value(), weight)
    filled = QuantisedLinear(weight.expert(0).to("meta"), torch.float32).to_empty(device="cpu")
    assert filled.device.type == "cpu"
    assert QuantisedLinear(weight.expert(0), torch.float32).to("meta").value().device.type == "meta"


def test_a_stack_keeps_the_experts_of_its_rank_and_their_memory_only():
    weight = fp8_weight(8, 24, 32, groups=2)
    stack = QuantisedStack(weight, torch.float32)
    stack.keep_experts(2, 5)
    assert same_parts(stack.value(), weight.experts(2, 5))
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in stack.value().tensors)
    assert "shape=[3, 24, 32]" in repr(stack)
    with pytest.raises(ValueError, match="three dimensions"):
        QuantisedStack(fp8_weight(24, 32), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_see_quantised_weights(kind):
    model, plain = quantised_tiny(kind), tiny_model()
    wanted = {name: parameter.numel() for name, parameter in plain.named_parameters() if is_quantised_in(kind, name)}
    assert is_quantised(model)
    assert not is_quantised(plain)
    assert num_parameters(model) == num_parameters(plain) == plain.config.num_parameters()
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters(plain) - sum(wanted.values())
    shapes = {weight.name: weight.shape for weight in logical_weights(model)}
    assert shapes == {name: parameter.shape for name, parameter in plain.named_parameters()}
    assert {weight.name for weight in logical_weights(model) if not weight.trained} == set(wanted)
    assert quantised_bytes(plain) == 0
    held = sum(buffer.nbytes for _, module in quantised_modules(model) for buffer in module.buffers())
    assert held == quantised_bytes(model)
    # A byte, or half a byte and a sixteenth, and four for each scale of a matrix: 2 * (8 * 3 + 3 + 5) of them at most.
    assert held <= sum(wanted.values()) * {"fp8": 1, "nvfp4": 9 / 16}[kind] + 4 * 2 * 32


@pytest.mark.parametrize("kind", KINDS)
def test_takes_the_place_of_parameters_on_the_meta_device(kind):
    with torch.device("meta"):
        model = Mistral4ForCausalLM(tiny_config()).eval()
    source = quantised_tiny(kind)
    for name, module in quantised_modules(source):
        put_quantised(model, f"{name}.weight" if isinstance(module, QuantisedLinear) else name, module.value(), torch.float32)
    assert not any(module.training for module in model.modules())
    assert [name for name, _ in quantised_modules(model)] == [name for name, _ in quantised_modules(source)]
    model.load_state_dict(source.state_dict(), assign=True)
    ids = torch.arange(20)
    layout = SequenceLayout.from_lengths([20])
    assert torch.equal(model(ids, layout), source(ids, layout))


def test_a_share_of_a_stack_may_take_its_place():
    model = tiny_model()
    put_quantised(model, "model.layers.0.mlp.experts.down_proj", fp8_weight(2, 64, 32), torch.float32)
    assert model.model.layers[0].mlp.experts.down_proj.shape == (2, 64, 32)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lm_head.weight", (512, 64), "cannot be quantised"),
        ("model.embed_tokens.weight", (512, 64), "cannot be quantised"),
        ("model.layers.0.mlp.gate.weight", (8, 64), "cannot be quantised"),
        ("model.norm.weight", (64, 64), "cannot be quantised"),
        ("model.layers.0.self_attn.o_proj.weight", (64, 32), "for a layer"),
        ("model.layers.0.mlp.experts.down_proj", (8, 64, 64), "for a stack"),
    ],
)
def test_what_cannot_be_replaced(name, shape, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        put_quantised(model, name, fp8_weight(*shape), torch.float32)
    assert not is_quantised(model)
