"""``left^T right`` over the rows of each segment: the gradients of the stacks and of their LoRA factors.

Either side may be gathered by token while it is loaded. A segment without rows gets zeros.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_gram.py``.

Shape suffixes: r rows that are loaded at a time, o columns of the left side, i columns of the right side.
"""

# ruff: noqa: ANN001, ANN201, E741 - what a kernel is given has types of Triton's own

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gram_kernel(
    left_ptr,
    right_ptr,
    pair_ptr,
    ends_ptr,
    out_ptr,
    O,
    I,
    out_stride_l,
    out_stride_e,
    LEFT_TOP_K: tl.constexpr,
    RIGHT_TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_O: tl.constexpr,
    EVEN_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write one tile of ``out[e] = left_e^T right_e``, stored [O, I], or [I, O] if TRANSPOSED.

    left [R, O] or [T, O] gathered by token if LEFT_TOP_K is not 0, right [R, I] likewise, ends int32: one past each segment's last row.
    SLOTS as in ``up.py``: out is then [L, E, ...], and segments without an adapter are passed over.
    """
    tiles_i = tl.cdiv(I, BLOCK_I)
    tiles = tl.cdiv(O, BLOCK_O) * tiles_i
    pid = tl.program_id(0)
    segment = pid // tiles
    expert = (segment // SLOTS).to(tl.int64)
    out_ptr += expert * out_stride_e
    if SLOTS > 1:
        adapter = (segment % SLOTS - 1).to(tl.int64)
        if adapter < 0:
            return
        out_ptr += adapter * out_stride_l
    start = tl.load(ends_ptr + segment - 1, mask=segment > 0, other=0)
    stop = tl.load(ends_ptr + segment)
    col_o = pid % tiles // tiles_i * BLOCK_O + tl.arange(0, BLOCK_O)
    col_i = pid % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)
    valid_o = col_o < O
    valid_i = col_i < I
    acc = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for r_start in range(start, stop, BLOCK_R):
        row_r = r_start + tl.arange(0, BLOCK_R)
        valid_r = row_r < stop
        left_r = row_r.to(tl.int64)
        right_r = row_r.to(tl.int64)
        if LEFT_TOP_K > 0:
            left_r = tl.load(pair_ptr + row_r, mask=valid_r, other=0) // LEFT_TOP_K
        if RIGHT_TOP_K > 0:
            right_r = tl.load(pair_ptr + row_r, mask=valid_r, other=0) // RIGHT_TOP_K
        left_mask = valid_r[:, None] if EVEN_O else valid_r[:, None] & valid_o[None, :]
        right_mask = valid_r[:, None] if EVEN_I else valid_r[:, None] & valid_i[None, :]
        left_ro = tl.load(left_ptr + left_r[:, None] * O + col_o[None, :], mask=left_mask, other=0.0)
        right_ri = tl.load(right_ptr + right_r[:, None] * I + col_i[None, :], mask=right_mask, other=0.0)
        acc = tl.dot(tl.trans(left_ro), right_ri, acc, input_precision=PRECISION)
    if TRANSPOSED:
        out_ptr_oi = out_ptr + col_i[None, :] * O + col_o[:, None]
    else:
        out_ptr_oi = out_ptr + col_o[:, None] * I + col_i[None, :]
    tl.store(out_ptr_oi, acc.to(out_ptr.dtype.element_ty), mask=valid_o[:, None] & valid_i[None, :])
