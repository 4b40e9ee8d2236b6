"""Sum the rows of each token, weighted or not, in slot order and in fp32: the end of the forward and of the input gradient.

A slot without a row (-1) adds nothing. Rows are gathered, not scattered, so that no two programs write one place: no atomic operations, and
the same result every time.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_combine.py``.

Shape suffixes: t tokens, k experts per token, d hidden.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel is given has types of Triton's own

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def combine_kernel(
    rows_ptr,
    row_ptr,
    weight_ptr,
    out_ptr,
    D,
    TOP_K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write ``out[t] = sum_k weight[t, k] * rows[row[t, k]]`` for one token and BLOCK_D columns; rows [R, d], row int64 [T, K] or -1."""
    token = tl.program_id(0).to(tl.int64)
    col_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    valid_d = col_d < D
    acc_d = tl.zeros((BLOCK_D,), tl.float32)
    for k in tl.static_range(TOP_K):
        source = tl.load(row_ptr + token * TOP_K + k)
        if EVEN_D:
            part_d = tl.load(rows_ptr + source * D + col_d, mask=source >= 0, other=0.0).to(tl.float32)
        else:
            part_d = tl.load(rows_ptr + source * D + col_d, mask=valid_d & (source >= 0), other=0.0).to(tl.float32)
        if WEIGHTED:
            part_d *= tl.load(weight_ptr + token * TOP_K + k).to(tl.float32)
        acc_d += part_d
    tl.store(out_ptr + token * D + col_d, acc_d.to(out_ptr.dtype.element_ty), mask=valid_d)
