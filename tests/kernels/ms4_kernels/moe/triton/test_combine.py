"""The gather and sum of each token's rows."""

from __future__ import annotations

import pytest
import torch
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton.launch import combine


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("width", [64, 100, 1400])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sum_in_fp32_and_slot_order(dtype, width, weighted):
    rows_rd, row_tk = torch.randn(15, width).to(dtype), torch.randperm(15).view(5, 3)
    weights_tk = torch.rand(5, 3) if weighted else None
    with interpreted():
        found = combine(rows_rd, row_tk, weights_tk)
    total = torch.zeros(5, width)
    for k in range(3):
        part = rows_rd[row_tk[:, k]].float()
        total += part if weights_tk is None else part * weights_tk[:, k, None]
    assert torch.equal(found, total.to(dtype))  # the same operations in the same order


@pytest.mark.parametrize("width", [64, 100])
def test_slots_without_a_row_add_nothing(width):
    rows_rd, row_tk, weights_tk = torch.randn(4, width), torch.tensor([[-1, 2], [-1, -1], [3, -1]]), torch.rand(3, 2)
    with interpreted():
        found = combine(rows_rd, row_tk, weights_tk)
    assert torch.equal(found, torch.stack((rows_rd[2] * weights_tk[0, 1], torch.zeros(width), rows_rd[3] * weights_tk[2, 0])))


def test_no_tokens():
    with interpreted() as launches:
        assert combine(torch.empty(0, 8), torch.empty(0, 2, dtype=torch.int64)).shape == (0, 8)
    assert not launches
