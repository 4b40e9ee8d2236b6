"""Products with each expert's matrix, in every shipped tile and both ways round, and with LoRA factors."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton import launch, operands
from ms4_kernels.moe.triton.operands import Factor, Rows, Stack
from ms4_kernels.moe.triton.tiles import grouped_tile
from ms4_kernels.routing import sort_by_expert

K, N = 136, 72


def plain(rows, order, matrices_ekn, dtype):
    """Each expert's rows times its matrix, in the type."""
    bounds = itertools.pairwise([0, *order.ends_e.tolist()])
    return torch.cat([rows[a:b].to(dtype) @ matrices_ekn[e].to(dtype) for e, (a, b) in enumerate(bounds)])


@pytest.mark.parametrize("k_inner", [True, False])
@pytest.mark.parametrize("described", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("rows_per_expert", [1, 16, 48, 256, 1024])
def test_product_with_tail(ragged, holds, monkeypatch, rows_per_expert, k_inner, described):
    monkeypatch.setattr(operands, "copies_tiles", lambda device: described)
    monkeypatch.setattr(launch, "grouped_tile", lambda _, dtype, kind: grouped_tile(rows_per_expert, dtype, kind))
    rows_rk, low_rp = torch.randn(94, K).bfloat16(), torch.randn(94, 24).bfloat16()
    matrix_ekn, factor_epn = ((torch.randn(5, size, N) / size**0.5).bfloat16() for size in (K, 24))
    stored = [x.transpose(1, 2).contiguous() if k_inner else x for x in (matrix_ekn, factor_epn)]
    with interpreted():
        found = launch.grouped(rows_rk, Stack.of(stored[0]), ragged, low_rp, Factor(stored[1]), k_inner=k_inner)
    truth, bar = (
        plain(rows_rk, ragged.order, matrix_ekn, dtype) + plain(low_rp, ragged.order, factor_epn, dtype)
        for dtype in (torch.float64, torch.bfloat16)
    )
    holds(found, truth, bar)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [8, 128])
@pytest.mark.parametrize("k_inner", [True, False])
def test_low_rank_of_tokens_is_scaled_before_rounding(ragged, holds, dtype, rank, k_inner):
    x_tk, matrix_ekp = torch.randn(47, K).to(dtype), (torch.randn(5, K, rank) / K**0.5).to(dtype)
    stored = matrix_ekp.transpose(1, 2).contiguous() if k_inner else matrix_ekp
    with interpreted():
        found = launch.low_rank(x_tk, Factor(stored), ragged, 0.7, gathered=True, k_inner=k_inner)
    rows_rk = x_tk[ragged.order.token_r]
    holds(found, *(plain(rows_rk, ragged.order, matrix_ekp, kind) * 0.7 for kind in (torch.float64, dtype)))


def test_each_row_takes_the_factor_of_its_adapter():
    adapter_t = torch.tensor([1, -1, 0, 1, 0, -1, 1])
    ids_tk = torch.randint(0, 3, (7, 2))
    rows = Rows(sort_by_expert(ids_tk, 3, adapter_t=adapter_t, num_adapters=2, backend="reference"), 2, slots=3)
    x_tk, factor_lepk = torch.randn(7, K), torch.randn(2, 3, 8, K)
    with interpreted():
        found = launch.low_rank(x_tk, Factor(factor_lepk), rows, 1.0, gathered=True, k_inner=True)
    for row, pair in enumerate(rows.order.pair_r.tolist()):
        token, adapter = pair // 2, int(adapter_t[pair // 2])
        if adapter >= 0:  # other rows are never read
            truth = x_tk[token].double() @ factor_lepk[adapter, ids_tk.view(-1)[pair]].double().t()
            # fp32 sums of 136 products of size 1: rounding grows like their root
            torch.testing.assert_close(found[row].double(), truth, rtol=0, atol=136**0.5 * 2**-23 * 8)
