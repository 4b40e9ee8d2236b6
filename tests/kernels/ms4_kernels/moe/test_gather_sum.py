"""The gather and sum of each token's rows, in torch and in Triton, against a sum written out token by token."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from support.triton_interpreter import interpreted

from ms4_kernels.moe.gather_sum import gather_sum, gather_sum_torch


@pytest.mark.parametrize("path", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sum_in_fp32_and_slot_order(path, dtype):
    rows_rd, row_tk = torch.randn(9, 40).to(dtype), torch.tensor([[3, -1, 8], [-1, -1, -1], [0, 1, 2], [-1, 7, -1]])
    with interpreted() if path == "triton" else nullcontext():
        found = gather_sum(rows_rd, row_tk)
    for token, rows in enumerate(row_tk.tolist()):
        total = torch.zeros(40)
        for row in rows:
            total += rows_rd[row].float() if row >= 0 else 0
        assert torch.equal(found[token], total.to(dtype))


def test_weights_and_fp64():
    rows_rd, row_tk = torch.randn(4, 6, dtype=torch.float64), torch.tensor([[3, 1], [2, -1]])
    weights_tk = torch.tensor([[0.5, 2.0], [3.0, 100.0]])
    expected = torch.stack((0.5 * rows_rd[3] + 2.0 * rows_rd[1], 3.0 * rows_rd[2]))
    torch.testing.assert_close(gather_sum_torch(rows_rd, row_tk, weights_tk), expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (3, 2)])
def test_no_rows(shape):
    assert not gather_sum(torch.empty(0, 5), torch.full(shape, -1)).any()
