"""The heavy kernel of the backward pass: from the output's gradient to that of the pre-activation, and to the routing weights'.

``da' = do W (+ low A)`` is the gradient of the activation before the routing weight w. The epilogue reads H, makes the activation again,
and writes ``dh = swiglu'(h) * w da'``, ``a' = w a`` for weight gradients, and the row's part of ``ds = <da', a>`` of these columns; those
parts are added up afterwards in fixed order. It walks over the columns in pieces: at full width its operands spill kilobytes of registers.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_dh.py``.

Shape suffixes as in ``loads.py``; c columns of one piece.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - what a kernel is given has types of Triton's own

from __future__ import annotations

import triton
import triton.language as tl

from ms4_kernels.moe.triton.loads import add_low_rank, halves, load_rows, load_weight_tile, locate_tile, multiply, source_rows


@triton.jit(do_not_specialize=["num_m"])
def dh_kernel(
    dout_ptr,
    pair_ptr,
    route_ptr,
    weight_ptr,
    block_scale_ptr,
    scale_ptr,
    low_ptr,
    factor_ptr,
    h_ptr,
    dh_ptr,
    act_ptr,
    dot_ptr,
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
    """Write dH [R, 2n], A' [R, n] if SAVE_ACT, and the partial dots fp32 [R, N / BLOCK_N] for the rows of one tile and BLOCK_N columns.

    dout [T, d], pair int64 [R], route [T * K] routing weights, weight [E, d, n] with its scales, low [R, RANK], factor [(L,) E, RANK, n], h
    [R, 2n]; N is n, K is d. SLOTS as in ``up.py``; SPLIT is 1, 2 or 4.
    """
    num_n = tl.cdiv(N, BLOCK_N)
    segment, start, stop, tile_n = locate_tile(segment_ptr, start_ptr, stop_ptr, num_m, num_n, GROUP_M)
    if start >= stop:
        return
    expert = (segment // SLOTS).to(tl.int64)
    DTYPE: tl.constexpr = dout_ptr.dtype.element_ty
    row_m = start + tl.arange(0, BLOCK_M)
    token_m = source_rows(row_m, stop, pair_ptr, TOP_K)
    dout_ptr_mk = dout_ptr + token_m[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    if KIND != "described":
        weight_ptr += expert * weight_stride_e
    if KIND == "fp8" or KIND == "nvfp4":
        scale_ptr += expert * GROUPS
    if KIND == "nvfp4":
        block_scale_ptr += expert * block_scale_stride_e
    n_start = tile_n * BLOCK_N
    if SWAP:
        dact = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        dact = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k_start in range(0, K, BLOCK_K):
        dout_mk = load_rows(dout_ptr_mk, k_start, K, EVEN_K, BLOCK_K)
        weight_oi = load_weight_tile(
            weight_ptr, block_scale_ptr, scale_ptr, expert, k_start, n_start, K, N,
            DTYPE, KIND, GROUPS, ONE_GROUP, NATIVE, EVEN_K, EVEN_N, BLOCK_K, BLOCK_N,
        )  # fmt: skip
        dact = multiply(dout_mk, weight_oi, dact, False, SWAP, PRECISION)
    last_m = source_rows(row_m, stop, pair_ptr, 0)
    if RANK > 0:
        adapter = (segment % SLOTS - 1).to(tl.int64)
        if SLOTS == 1:
            factor_ptr += expert * factor_stride_e
        else:
            factor_ptr += adapter * factor_stride_l + expert * factor_stride_e
        if SLOTS == 1 or adapter >= 0:
            dact = add_low_rank(dact, low_ptr, factor_ptr, last_m, n_start, N, RANK, False, SWAP, PRECISION, EVEN_N, BLOCK_RANK, BLOCK_N)
    if SWAP:
        dact = tl.trans(dact)
    route_m = tl.load(route_ptr + tl.load(pair_ptr + last_m)).to(tl.float32)
    valid_m = row_m < stop
    W: tl.constexpr = BLOCK_N // SPLIT
    if SPLIT == 1:
        dot_m = _finish(dact, last_m, valid_m, route_m, h_ptr, dh_ptr, act_ptr, n_start, N, SAVE_ACT, EVEN_N, BLOCK_N)
    else:
        first, second = halves(dact, BLOCK_M, BLOCK_N)
        if SPLIT == 2:
            dot_m = _finish(first, last_m, valid_m, route_m, h_ptr, dh_ptr, act_ptr, n_start, N, SAVE_ACT, EVEN_N, W)
            dot_m += _finish(second, last_m, valid_m, route_m, h_ptr, dh_ptr, act_ptr, n_start + W, N, SAVE_ACT, EVEN_N, W)
        else:
            part_0, part_1 = halves(first, BLOCK_M, BLOCK_N // 2)
            part_2, part_3 = halves(second, BLOCK_M, BLOCK_N // 2)
            dot_m = _finish(part_0, last_m, valid_m, route_m, h_ptr, dh_ptr, act_ptr, n_start, N, SAVE_ACT, EVEN_N, W)
            dot_m += _finish(part_1, last_m, valid_m, route_m, h_ptr, dh_ptr, act_ptr, n_start + W, N, SAVE_ACT, EVEN_N, W)
            dot_m += _finish(part_2, last_m, valid_m, route_m, h_ptr, dh_ptr, act_ptr, n_start + 2 * W, N, SAVE_ACT, EVEN_N, W)
            dot_m += _finish(part_3, last_m, valid_m, route_m, h_ptr, dh_ptr, act_ptr, n_start + 3 * W, N, SAVE_ACT, EVEN_N, W)
    tl.store(dot_ptr + last_m * num_n + tile_n, dot_m, mask=valid_m)


@triton.jit
def _finish(
    dact_mc,
    last_m,
    valid_m,
    route_m,
    h_ptr,
    dh_ptr,
    act_ptr,
    c_start,
    N,
    SAVE_ACT: tl.constexpr,
    EVEN_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Do the epilogue of WIDTH columns and return each row's dot product over them."""
    col_c = c_start + tl.arange(0, WIDTH)
    h_offset_mc = last_m[:, None] * (2 * N) + col_c[None, :]
    if EVEN_N:
        mask_mc = valid_m[:, None]
        gate = tl.load(h_ptr + h_offset_mc).to(tl.float32)
        up = tl.load(h_ptr + h_offset_mc + N).to(tl.float32)
    else:
        inside_c = (col_c < N)[None, :]
        mask_mc = valid_m[:, None] & inside_c
        gate = tl.load(h_ptr + h_offset_mc, mask=inside_c, other=0.0).to(tl.float32)
        up = tl.load(h_ptr + h_offset_mc + N, mask=inside_c, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    act = silu * up
    dot_m = tl.sum(dact_mc * act, axis=1)
    if SAVE_ACT:
        act_ptr_mc = act_ptr + last_m[:, None] * N + col_c[None, :]
        tl.store(act_ptr_mc, (act * route_m[:, None]).to(act_ptr.dtype.element_ty), mask=mask_mc)
    dact_mc *= route_m[:, None]
    DTYPE: tl.constexpr = dh_ptr.dtype.element_ty
    tl.store(dh_ptr + h_offset_mc, (dact_mc * up * (sigmoid + silu * (1.0 - sigmoid))).to(DTYPE), mask=mask_mc)
    tl.store(dh_ptr + h_offset_mc + N, (dact_mc * silu).to(DTYPE), mask=mask_mc)
    return dot_m
