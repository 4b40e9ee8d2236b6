"""The structures against the compiler's, and that a description points to the weights themselves."""

from __future__ import annotations

import ctypes

import pytest
import torch
from support.models import tiny_model
from support.network_weights import make_pools, network_weights

from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.native import library, why_not
from ms4_kernels.step.structures import STRUCTURES, CAdapter, CLayer, CLowRank, NetworkDescription
from ms4_kernels.step.weights import LowRank

loaded = library()


@pytest.mark.skipif(loaded is None, reason=why_not() or "no library")
def test_sizes_are_the_compilers():
    assert loaded is not None
    sizes = (ctypes.c_int64 * len(STRUCTURES))()
    loaded.ms4_step_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(structure) for structure in STRUCTURES]


def test_weights_are_pointed_to_and_not_copied():
    model = tiny_model()
    weights, pools = network_weights(model), make_pools(model, 4, 8)
    description = NetworkDescription(weights, pools)
    described = description.c
    layers = (CLayer * described.num_layers).from_address(described.layers)
    for layer, pool, module in zip(layers, pools, model.model.layers, strict=True):
        assert layer.pool == pool.data_ptr()
        assert layer.q_b.weight.stack.data == module.self_attn.q_b_proj.weight.data_ptr()
        assert layer.down.weight.stack.data == module.mlp.experts.down_proj.data_ptr()
        assert (layer.down.weight.rows, layer.down.weight.columns) == tuple(module.mlp.experts.down_proj.shape[1:])
        assert layer.router.stack.data == module.mlp.gate.weight.data_ptr()
    assert described.head.weight.stack.data == model.lm_head.weight.data_ptr()


def test_adapters_stand_under_their_numbers():
    model = tiny_model()
    weights = network_weights(model)
    pair = LowRank(torch.randn(3, 64), torch.randn(24, 3), 0.5)
    weights.layers[1].q_a.adapters[2] = (pair, LowRank(torch.randn(5, 64), torch.randn(24, 5), 1.0))
    only_down = ExpertLora(down_a_ern=torch.randn(8, 9, 32), down_b_edr=torch.randn(8, 64, 9), down_scale=0.25)
    weights.layers[1].experts.adapters[0] = (only_down,)
    description = NetworkDescription(weights, make_pools(model, 4, 8))
    described = description.c
    assert described.max_rank == 9
    layer = (CLayer * 2).from_address(described.layers)[1]
    adapters = (CAdapter * layer.q_a.adapters).from_address(layer.q_a.adapter)
    assert [(adapter.count, adapter.rank) for adapter in adapters] == [(0, 0), (0, 0), (2, 8)]
    parts = (CLowRank * 2).from_address(adapters[2].parts)
    assert parts[0].a.stack.data == pair.a_ri.data_ptr()
    assert parts[0].scale == 0.5
    assert (CAdapter * 1).from_address(layer.gate_up.adapter)[0].count == 0
    assert (CAdapter * 1).from_address(layer.down.adapter)[0].rank == 9
