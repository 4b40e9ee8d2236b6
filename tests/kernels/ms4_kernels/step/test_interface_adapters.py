"""Adapters by row against models in fp64 with those adapters merged; alone and in company to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from support.models import tiny_config, tiny_model
from support.network_weights import make_pools, network_weights

from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.native import library, why_not
from ms4_kernels.step import LowRank, NetworkStep
from ms4_train.model.layout import SequenceLayout

pytestmark = pytest.mark.skipif(library() is None, reason=why_not() or "no library")

MODULES = {
    "q_a": "self_attn.q_a_proj",
    "q_b": "self_attn.q_b_proj",
    "kv_a": "self_attn.kv_a_proj_with_mqa",
    "kv_b": "self_attn.kv_b_proj",
    "o": "self_attn.o_proj",
    "shared_gate": "mlp.shared_experts.gate_proj",
    "shared_up": "mlp.shared_experts.up_proj",
    "shared_down": "mlp.shared_experts.down_proj",
}
# As in test_interface; the merged weights are larger than the plain ones.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def random_pair(shape, rank, scale, dtype):
    return LowRank((0.2 * torch.randn(*shape[:-2], rank, shape[-1])).to(dtype), (0.2 * torch.randn(*shape[:-1], rank)).to(dtype), scale)


def add_adapter(weights, number, rank, dtype=torch.float32, pieces=1):
    """Give everything an adapter."""
    for layer in weights.layers:
        for _, projection in layer.projections():
            projection.adapters[number] = tuple(random_pair(projection.weight.shape, rank, 0.7, dtype) for _ in range(pieces))
        up = [random_pair(layer.experts.gate_up.shape, rank, 0.7, dtype) for _ in range(pieces)]
        down = [random_pair(layer.experts.down.shape, rank + 1, 1.3, dtype) for _ in range(pieces)]
        layer.experts.adapters[number] = tuple(
            ExpertLora(*up_pair[:2], *down_pair[:2], up_pair.scale, down_pair.scale) for up_pair, down_pair in zip(up, down, strict=True)
        )
    weights.head.adapters[number] = tuple(random_pair(weights.head.weight.shape, rank, 0.7, dtype) for _ in range(pieces))


@torch.no_grad()
def merged(model, weights, number):
    """The model in fp64 with an adapter in its weights."""
    model = copy.deepcopy(model).double()

    def add(weight, a, b, scale):
        if a is not None:
            weight.add_(scale * b.double() @ a.double())

    for layer, module in zip(weights.layers, model.model.layers, strict=True):
        for name, projection in layer.projections():
            for pair in projection.adapters.get(number, ()):
                add(module.get_submodule(MODULES[name]).weight, *pair)
        for lora in layer.experts.adapters.get(number, ()):
            add(module.mlp.experts.gate_up_proj, lora.gate_up_a_erd, lora.gate_up_b_eir, lora.gate_up_scale)
            add(module.mlp.experts.down_proj, lora.down_a_ern, lora.down_b_edr, lora.down_scale)
    for pair in weights.head.adapters.get(number, ()):
        add(model.lm_head.weight, *pair)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_each_row_has_its_own_adapter(dtype):
    model = tiny_model(tiny_config(), dtype=dtype)
    weights = network_weights(model)
    add_adapter(weights, 0, rank=3, dtype=dtype)
    add_adapter(weights, 2, rank=17, dtype=dtype, pieces=2)  # 1 is unknown to every projection
    lengths, numbers, tables = [33, 70, 20, 1, 9], [0, 2, -1, 2, 1], [range(5), range(5, 15), range(15, 18), [20], [21, 22]]
    embedding_td = torch.randn(sum(lengths), 64)

    def fresh():
        return NetworkStep(weights, make_pools(model, 23, 8), 8)

    together_td = fresh().run(embedding_td, lengths, [0] * 5, tables, numbers, range(sum(lengths)))
    logits_tv = fresh().logits(together_td, [number for number, length in zip(numbers, lengths, strict=True) for _ in range(length)])
    for part_td, part_tv, input_td, number, table in zip(
        together_td.split(lengths), logits_tv.split(lengths), embedding_td.split(lengths), numbers, tables, strict=True
    ):
        twin, rows = merged(model, weights, number), len(input_td)
        expected_td = twin.model(input_td.double(), SequenceLayout.from_lengths([rows]))
        torch.testing.assert_close(part_td.double(), expected_td, **CLOSE)
        torch.testing.assert_close(part_tv.double(), twin.logits(expected_td), **CLOSE)
        step = fresh()
        assert torch.equal(step.run(input_td, [rows], [0], [table], [number], range(rows)), part_td)
        assert torch.equal(step.logits(part_td[:1], [number]), part_tv[:1])


@torch.inference_mode()
def test_control_adapters_matter():
    model = tiny_model()
    weights = network_weights(model)
    add_adapter(weights, 0, rank=3)
    step, embedding_td = NetworkStep(weights, make_pools(model, 4, 8), 8), torch.randn(9, 64)
    with_td, without_td = (step.run(embedding_td, [9], [0], [[0, 1]], [number], range(9)) for number in (0, -1))
    assert (with_td - without_td).abs().max() > 0.1
    assert (step.logits(without_td, [0] * 9) - step.logits(without_td, [-1] * 9)).abs().max() > 0.1


@pytest.mark.parametrize("name", [*MODULES, "gate_up", "down"])
@torch.inference_mode()
def test_one_projection_at_a_time(name):
    model = tiny_model()
    weights = network_weights(model)
    add_adapter(weights, 0, rank=5)
    for layer in weights.layers:
        for other, projection in layer.projections():
            if other != name:
                projection.adapters.clear()
        (lora,) = layer.experts.adapters.pop(0)
        if name == "gate_up":
            lora = ExpertLora(lora.gate_up_a_erd, lora.gate_up_b_eir, gate_up_scale=lora.gate_up_scale)
            layer.experts.adapters[0] = (lora,)
        elif name == "down":
            lora = ExpertLora(down_a_ern=lora.down_a_ern, down_b_edr=lora.down_b_edr, down_scale=lora.down_scale)
            layer.experts.adapters[0] = (lora,)
    embedding_td = torch.randn(20, 64)
    step = NetworkStep(weights, make_pools(model, 4, 8), 8)
    hidden_td, plain_td = (step.run(embedding_td, [20], [0], [[0, 1, 2]], [number], range(20)) for number in (0, -1))
    expected_td = merged(model, weights, 0).model(embedding_td.double(), SequenceLayout.from_lengths([20]))
    torch.testing.assert_close(hidden_td.double(), expected_td, **CLOSE)
    assert (hidden_td - plain_td).abs().max() > 1e-2  # control: this projection's adapter alone is seen
