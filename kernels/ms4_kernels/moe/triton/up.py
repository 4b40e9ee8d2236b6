"""The up-projection of all experts with the gate in its epilogue: ``h = x W^T (+ low B^T)``, ``a = silu(h_gate) * h_up``.

The tokens' rows are gathered while they are loaded. Gate rows 0 .. n-1 and up rows n .. 2n-1 of the matrix have an accumulator each, so
that a program holds both halves of its columns.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_up.py``.

Shape suffixes as in ``loads.py``.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - what a kernel is given has types of Triton's own

from __future__ import annotations

import triton
import triton.language as tl

from ms4_kernels.moe.triton.loads import add_low_rank, halves, load_rows, load_weight_tile, locate_tile, multiply, source_rows


@triton.jit(do_not_specialize=["num_m"])
def up_kernel(
    hidden_ptr,
    pair_ptr,
    weight_ptr,
    block_scale_ptr,
    scale_ptr,
    low_ptr,
    factor_ptr,
    h_ptr,
    act_ptr,
    segment_ptr,
    start_ptr,
    stop_ptr,
    num_m,
    N,
    K,
    weight_stride_e,
    block_scale_stride_e,
    factor_stride_l,
    factor_stride_e,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    KIND: tl.constexpr,
    GROUPS: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
    RANK: tl.constexpr,
    SAVE_H: tl.constexpr,
    SAVE_ACT: tl.constexpr,
    SPLIT: tl.constexpr,
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
    """Write H [R, 2n] and A [R, n] for the rows of one tile and BLOCK_N columns.

    hidden [T, d], pair int64 [R], weight [E, 2n, d] with its scales, low [R, RANK], factor [(L,) E, 2n, RANK]; N is n, K is d. SLOTS is 1,
    or one more than the number of adapters, whose tiles are those of segments ``expert * SLOTS + adapter + 1``. SPLIT is 1 or 2.
    """
    num_n = tl.cdiv(N, BLOCK_N)
    segment, start, stop, tile_n = locate_tile(segment_ptr, start_ptr, stop_ptr, num_m, num_n, GROUP_M)
    if start >= stop:
        return
    expert = (segment // SLOTS).to(tl.int64)
    DTYPE: tl.constexpr = hidden_ptr.dtype.element_ty
    row_m = start + tl.arange(0, BLOCK_M)
    token_m = source_rows(row_m, stop, pair_ptr, TOP_K)
    hidden_ptr_mk = hidden_ptr + token_m[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    if KIND != "described":
        weight_ptr += expert * weight_stride_e
    if KIND == "fp8" or KIND == "nvfp4":
        scale_ptr += expert * GROUPS
    if KIND == "nvfp4":
        block_scale_ptr += expert * block_scale_stride_e
    n_start = tile_n * BLOCK_N
    if SWAP:
        gate = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k_start in range(0, K, BLOCK_K):
        hidden_mk = load_rows(hidden_ptr_mk, k_start, K, EVEN_K, BLOCK_K)
        # A ragged last gate tile reads into the up rows; its columns past n are not stored.
        gate_oi = load_weight_tile(
            weight_ptr, block_scale_ptr, scale_ptr, expert, n_start, k_start, 2 * N, K,
            DTYPE, KIND, GROUPS, ONE_GROUP, NATIVE, EVEN_N, EVEN_K, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        up_oi = load_weight_tile(
            weight_ptr, block_scale_ptr, scale_ptr, expert, N + n_start, k_start, 2 * N, K,
            DTYPE, KIND, GROUPS, ONE_GROUP, NATIVE, EVEN_N, EVEN_K, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        gate = multiply(hidden_mk, gate_oi, gate, True, SWAP, PRECISION)
        up = multiply(hidden_mk, up_oi, up, True, SWAP, PRECISION)
    last_m = source_rows(row_m, stop, pair_ptr, 0)
    if RANK > 0:
        adapter = (segment % SLOTS - 1).to(tl.int64)
        if SLOTS == 1:
            factor_ptr += expert * factor_stride_e
        else:
            factor_ptr += adapter * factor_stride_l + expert * factor_stride_e
        if SLOTS == 1 or adapter >= 0:
            gate = add_low_rank(gate, low_ptr, factor_ptr, last_m, n_start, 2 * N, RANK, True, SWAP, PRECISION, EVEN_N, BLOCK_RANK, BLOCK_N)
            up = add_low_rank(up, low_ptr, factor_ptr, last_m, N + n_start, 2 * N, RANK, True, SWAP, PRECISION, EVEN_N, BLOCK_RANK, BLOCK_N)
    if SWAP:
        gate = tl.trans(gate)
        up = tl.trans(up)
    valid_m = row_m < stop
    W: tl.constexpr = BLOCK_N // SPLIT
    if SPLIT == 1:
        _finish(gate, up, last_m, valid_m, h_ptr, act_ptr, n_start, N, DTYPE, SAVE_H, SAVE_ACT, EVEN_N, W)
    else:
        gate_left, gate_right = halves(gate, BLOCK_M, BLOCK_N)
        up_left, up_right = halves(up, BLOCK_M, BLOCK_N)
        _finish(gate_left, up_left, last_m, valid_m, h_ptr, act_ptr, n_start, N, DTYPE, SAVE_H, SAVE_ACT, EVEN_N, W)
        _finish(gate_right, up_right, last_m, valid_m, h_ptr, act_ptr, n_start + W, N, DTYPE, SAVE_H, SAVE_ACT, EVEN_N, W)


@triton.jit
def _finish(
    gate,
    up,
    last_m,
    valid_m,
    h_ptr,
    act_ptr,
    c_start,
    N,
    DTYPE: tl.constexpr,
    SAVE_H: tl.constexpr,
    SAVE_ACT: tl.constexpr,
    EVEN_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Store WIDTH columns of H and of the activation."""
    col_c = c_start + tl.arange(0, WIDTH)
    mask_mc = valid_m[:, None] if EVEN_N else valid_m[:, None] & (col_c < N)[None, :]
    if SAVE_H:
        h_ptr_mc = h_ptr + last_m[:, None] * (2 * N) + col_c[None, :]
        tl.store(h_ptr_mc, gate.to(DTYPE), mask=mask_mc)
        tl.store(h_ptr_mc + N, up.to(DTYPE), mask=mask_mc)
    if SAVE_ACT:
        act = gate * tl.sigmoid(gate) * up
        tl.store(act_ptr + last_m[:, None] * N + col_c[None, :], act.to(DTYPE), mask=mask_mc)
