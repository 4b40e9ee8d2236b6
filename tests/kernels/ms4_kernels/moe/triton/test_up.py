"""The up-projection in every shipped tile, at sizes that are no multiples of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton import launch, operands
from ms4_kernels.moe.triton.operands import Factor, Stack
from ms4_kernels.moe.triton.tiles import up_tile

D, N = 136, 72


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("described", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("rows_per_expert", [1, 16, 48, 256, 1024])
def test_h_and_activation(ragged, holds, monkeypatch, rows_per_expert, rank, described):
    monkeypatch.setattr(operands, "copies_tiles", lambda device: described)
    monkeypatch.setattr(launch, "up_tile", lambda _, dtype, kind: up_tile(rows_per_expert, dtype, kind))
    hidden_td, weight_eid = torch.randn(47, D).bfloat16(), (torch.randn(5, 2 * N, D) / D**0.5).bfloat16()
    low_rp, factor_eip = torch.randn(94, 8).bfloat16(), (torch.randn(5, 2 * N, 8) / 3).bfloat16()
    factor = Factor(factor_eip) if rank else None
    with interpreted():
        h_ri, act_rn = launch.up(hidden_td, Stack.of(weight_eid), ragged, low_rp if rank else None, factor)
    assert h_ri is not None
    assert act_rn is not None

    def plain(dtype):
        x_rd, low, order = hidden_td.to(dtype)[ragged.order.token_r], low_rp.to(dtype), ragged.order
        parts = []
        for e, (start, stop) in enumerate(zip([0, *order.ends_e.tolist()], order.ends_e.tolist(), strict=False)):
            part = F.linear(x_rd[start:stop], weight_eid[e].to(dtype))
            parts.append(part + F.linear(low[start:stop], factor_eip[e].to(dtype)) if rank else part)
        h = torch.cat(parts)
        return h, F.silu(h[:, :N]) * h[:, N:]

    for found, truth, bar in zip((h_ri, act_rn), plain(torch.float64), plain(torch.bfloat16), strict=True):
        holds(found, truth, bar)


def test_only_what_is_asked_for(ragged):
    stack = Stack.of(torch.randn(5, 32, 64))
    hidden_td = torch.randn(47, 64)
    with interpreted():
        both = launch.up(hidden_td, stack, ragged)
        h_ri, nothing = launch.up(hidden_td, stack, ragged, save_act=False)
        none, act_rn = launch.up(hidden_td, stack, ragged, save_h=False)
    assert nothing is None
    assert none is None
    assert both[0] is not None
    assert both[1] is not None
    assert h_ri is not None
    assert act_rn is not None
    assert torch.equal(both[0], h_ri)
    assert torch.equal(both[1], act_rn)


@pytest.mark.parametrize("rank", [40, 64])
def test_a_rank_of_several_parts(ragged, holds, rank):
    """Exact fp32 products take the rank in parts of 32, of which the last may stick out."""
    hidden_td, weight_eid = torch.randn(47, 32), torch.randn(5, 2 * 24, 32) / 32**0.5
    low_rp, factor_eip = torch.randn(94, rank), torch.randn(5, 2 * 24, rank) / rank**0.5
    with interpreted():
        h_ri, _ = launch.up(hidden_td, Stack.of(weight_eid), ragged, low_rp, Factor(factor_eip))
    assert h_ri is not None

    def plain(dtype):
        ends = [0, *ragged.order.ends_e.tolist()]
        x_rd, low, stack, factor = hidden_td.to(dtype)[ragged.order.token_r], low_rp.to(dtype), weight_eid.to(dtype), factor_eip.to(dtype)
        spans = [slice(start, stop) for start, stop in pairwise(ends)]
        return torch.cat([F.linear(x_rd[rows], stack[e]) + F.linear(low[rows], factor[e]) for e, rows in enumerate(spans)])

    holds(h_ri, plain(torch.float64), plain(torch.float32))
