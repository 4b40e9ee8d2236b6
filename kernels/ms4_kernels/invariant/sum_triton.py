"""The sum of each row in Triton: one program a row, lanes that each add every LANES-th number, and one tree over the lanes.

Exercise it: ``pytest tests/kernels/ms4_kernels/invariant/test_sum_triton.py``.

Shape suffixes: x numbers of a row, l lanes.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel is given has types of Triton's own

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_LANES, NUM_WARPS = 1024, 4


@triton.jit
def sum_kernel(x_ptr, out_ptr, length, LANES: tl.constexpr):
    """Write the sum of one row of x [rows, length], fp32 and contiguous."""
    row = tl.program_id(0).to(tl.int64)
    lane_l = tl.arange(0, LANES)
    sum_l = tl.zeros((LANES,), tl.float32)
    for first in range(0, length, LANES):
        sum_l += tl.load(x_ptr + row * length + first + lane_l, mask=first + lane_l < length, other=0.0)
    tl.store(out_ptr + row, tl.sum(sum_l, axis=0))


def sum_triton(x: Tensor) -> Tensor:
    """Sum fp32 over the last axis, which holds at least one number."""
    rows = x.contiguous().flatten(0, -2) if x.ndim > 1 else x.contiguous()[None]
    out = x.new_empty(rows.shape[0])
    if out.numel():
        launch: Any = sum_kernel[(rows.shape[0],)]
        with torch.cuda.device_of(x):
            launch(rows, out, rows.shape[1], LANES=lanes_for(rows.shape[1]), num_warps=NUM_WARPS)
    return out.view(x.shape[:-1])


def lanes_for(length: int) -> int:
    """Numbers that one program adds at once: a power of two, by the length of a row alone."""
    return min(MOST_LANES, 1 << max(length - 1, 0).bit_length())
