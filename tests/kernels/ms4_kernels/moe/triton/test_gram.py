"""Products of rows with rows, expert by expert: gathered or not, wide or of a LoRA's rank, with and without adapters."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton.launch import gram
from ms4_kernels.moe.triton.operands import Rows
from ms4_kernels.routing import sort_by_expert


def plain(left_ro, right_ri, ends, dtype):
    return torch.stack([left_ro[a:b].to(dtype).t() @ right_ri[a:b].to(dtype) for a, b in itertools.pairwise([0, *ends.tolist()])])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("outputs", "inputs"), [(200, 136), (8, 136), (136, 24), (128, 256)])
@pytest.mark.parametrize("gather", ["left", "right", ""])
def test_product_of_every_expert(ragged, holds, dtype, outputs, inputs, gather):
    left, right = (torch.randn(47 if gather == side else 94, width).to(dtype) for side, width in (("left", outputs), ("right", inputs)))
    found = torch.full((5, outputs, inputs), torch.nan, dtype=dtype)
    with interpreted():
        gram(left, right, ragged, found, gather_left=gather == "left", gather_right=gather == "right")
    token_r = ragged.order.token_r
    left, right = left[token_r] if gather == "left" else left, right[token_r] if gather == "right" else right
    holds(found, *(plain(left, right, ragged.order.ends_e, kind) for kind in (torch.float64, dtype)))
    assert not found[3].any()  # an expert without rows


def test_segments_of_adapters_and_sums_of_experts(holds):
    adapter_t, ids_tk = torch.tensor([1, -1, 0, 1, 1]), torch.tensor([[0, 2], [0, 0], [2, 0], [0, 2], [2, 2]])
    order = sort_by_expert(ids_tk, 3, adapter_t=adapter_t, num_adapters=2, backend="reference")
    rows = Rows(order, 2, slots=3)
    left_ro, right_ri = torch.randn(10, 40), torch.randn(10, 8)
    each, all_together = torch.full((2, 3, 40, 8), torch.nan), torch.full((3, 40, 8), torch.nan)
    with interpreted():
        gram(left_ro, right_ri, rows, each)
        gram(left_ro, right_ri, rows, all_together)
    assert order.segment_ends_s is not None
    truth, bar = (plain(left_ro, right_ri, order.segment_ends_s, kind).unflatten(0, (3, 3)) for kind in (torch.float64, torch.float32))
    holds(each, truth[:, 1:].transpose(0, 1), bar[:, 1:].transpose(0, 1))
    holds(all_together, *(plain(left_ro, right_ri, order.ends_e, kind) for kind in (torch.float64, torch.float32)))


def test_no_rows_gives_zeros():
    rows = Rows(sort_by_expert(torch.empty(0, 2, dtype=torch.int64), 4, backend="reference"), 2)
    found = torch.full((4, 16, 16), torch.nan)
    with interpreted():
        gram(torch.empty(0, 16), torch.empty(0, 16), rows, found)
    assert torch.equal(found, torch.zeros(4, 16, 16))
