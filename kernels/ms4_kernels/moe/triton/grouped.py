"""Rows times the matrix of each row's expert, with an optional low-rank tail: the down-projection, the input gradient, and LoRA's products.

Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_grouped.py``.

Shape suffixes as in ``loads.py``.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel is given has types of Triton's own

from __future__ import annotations

import triton
import triton.language as tl

from ms4_kernels.moe.triton.loads import add_low_rank, load_rows, load_weight_tile, locate_tile, multiply, source_rows


@triton.jit(do_not_specialize=["num_m"])
def grouped_kernel(
    rows_ptr,
    pair_ptr,
    weight_ptr,
    block_scale_ptr,
    scale_ptr,
    low_ptr,
    factor_ptr,
    out_ptr,
    segment_ptr,
    start_ptr,
    stop_ptr,
    num_m,
    N,
    K,
    multiplier,
    weight_stride_l,
    weight_stride_e,
    block_scale_stride_e,
    factor_stride_l,
    factor_stride_e,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    IS_FACTOR: tl.constexpr,
    K_INNER: tl.constexpr,
    KIND: tl.constexpr,
    GROUPS: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
    RANK: tl.constexpr,
    SWAP: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
):
    """Write ``multiplier * rows W`` [R, N], or ``rows W + low F``, for the rows of one tile and BLOCK_N columns.

    rows [R, K], or [T, K] gathered by token if TOP_K is not 0; weight [E, N, K] if K_INNER, else [E, K, N]; factor [(L,) E, N, RANK] or
    [(L,) E, RANK, N] likewise. IS_FACTOR: the weight is itself a LoRA factor, with an axis of adapters if SLOTS > 1 (see ``up.py``); rows
    without an adapter are then left unwritten. The multiplier, LoRA's scale, counts only there.
    """
    num_n = tl.cdiv(N, BLOCK_N)
    segment, start, stop, tile_n = locate_tile(segment_ptr, start_ptr, stop_ptr, num_m, num_n, GROUP_M)
    if start >= stop:
        return
    expert = (segment // SLOTS).to(tl.int64)
    adapter = (segment % SLOTS - 1).to(tl.int64)
    if IS_FACTOR and SLOTS > 1:
        if adapter < 0:
            return
        weight_ptr += adapter * weight_stride_l
    DTYPE: tl.constexpr = rows_ptr.dtype.element_ty
    row_m = start + tl.arange(0, BLOCK_M)
    source_m = source_rows(row_m, stop, pair_ptr, TOP_K)
    rows_ptr_mk = rows_ptr + source_m[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    if KIND != "described":
        weight_ptr += expert * weight_stride_e
    if KIND == "fp8" or KIND == "nvfp4":
        scale_ptr += expert * GROUPS
    if KIND == "nvfp4":
        block_scale_ptr += expert * block_scale_stride_e
    n_start = tile_n * BLOCK_N
    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k_start in range(0, K, BLOCK_K):
        row_mk = load_rows(rows_ptr_mk, k_start, K, EVEN_K, BLOCK_K)
        if K_INNER:
            weight_oi = load_weight_tile(
                weight_ptr, block_scale_ptr, scale_ptr, expert, n_start, k_start, N, K,
                DTYPE, KIND, GROUPS, ONE_GROUP, NATIVE, EVEN_N, EVEN_K, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            weight_oi = load_weight_tile(
                weight_ptr, block_scale_ptr, scale_ptr, expert, k_start, n_start, K, N,
                DTYPE, KIND, GROUPS, ONE_GROUP, NATIVE, EVEN_K, EVEN_N, BLOCK_K, BLOCK_N,
            )  # fmt: skip
        acc = multiply(row_mk, weight_oi, acc, K_INNER, SWAP, PRECISION)
    if RANK > 0:
        last_m = source_rows(row_m, stop, pair_ptr, 0)
        if SLOTS == 1:
            factor_ptr += expert * factor_stride_e
            acc = add_low_rank(acc, low_ptr, factor_ptr, last_m, n_start, N, RANK, K_INNER, SWAP, PRECISION, EVEN_N, BLOCK_RANK, BLOCK_N)
        elif adapter >= 0:
            factor_ptr += adapter * factor_stride_l + expert * factor_stride_e
            acc = add_low_rank(acc, low_ptr, factor_ptr, last_m, n_start, N, RANK, K_INNER, SWAP, PRECISION, EVEN_N, BLOCK_RANK, BLOCK_N)
    if IS_FACTOR:
        acc = acc * multiplier
    if SWAP:
        acc = tl.trans(acc)
    col_n = n_start + tl.arange(0, BLOCK_N)
    out_ptr_mn = out_ptr + row_m.to(tl.int64)[:, None] * N + col_n[None, :]
    tl.store(out_ptr_mn, acc.to(DTYPE), mask=(row_m < stop)[:, None] & (col_n < N)[None, :])
