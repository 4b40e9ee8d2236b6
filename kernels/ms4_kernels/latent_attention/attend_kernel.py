"""Absorbed attention over paged latents in Triton: all heads of a token meet a tile of positions at once, contexts are cut into splits.

A tile of positions is read once, as key and as value of all heads. Products are turned around, positions times heads, so that Hopper's and
Blackwell's tensor cores, which want 64 rows from their first operand, are filled by positions and by latent lanes, whatever the heads are.
Scores are kept in base 2. Prompt chunks go token by token too: neighbours run at the same time and find a tile in the cache. A second token
in the tile was tried: it needs so many registers that it spilled on Blackwell, and with E4M3 on Hopper. As it is, a token's result depends
on itself, its context and the number of splits alone.
Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention/test_attend_kernel.py``.

Shape suffixes: s positions of a tile, r heads and padding up to a power of two, c latent lanes, p rotary lanes.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - what a kernel is given has types of Triton's own

from __future__ import annotations

import triton
import triton.language as tl

from ms4_kernels.moe.triton.loads import e4m3_to_fp32

_LOWEST = tl.constexpr(-3.0e38)
"""Below every score, and finite: what has been seen at first, so that no inf meets -inf."""
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["table_width"])
def attend_kernel(
    query_ptr,
    pool_ptr,
    table_ptr,
    sequence_ptr,
    position_ptr,
    out_ptr,
    lse_ptr,
    table_width,
    num_rows,
    scale,
    HEADS: tl.constexpr,
    LATENT: tl.constexpr,
    ROTARY: tl.constexpr,
    PAGE: tl.constexpr,
    IS_FP8: tl.constexpr,
    NATIVE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    LEAST_SPLIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Attend with the heads of one token over one split of what it sees: the grid is tokens by splits, all as long but the last ones.

    query [T, HEADS, LATENT + ROTARY], pool [n, PAGE, LATENT + ROTARY], table int32 [B, table_width], sequence and position int32 [T].
    num_rows is T * HEADS. Writes [T, HEADS, LATENT]; or with IS_SPLIT fp32 [splits, T, HEADS, LATENT], and the base-2 logarithm of the sum
    of weights, fp32 [splits, T, HEADS]: -inf where a split is empty, of which nothing else is written.
    """
    token = tl.program_id(0)
    split = tl.program_id(1)
    table_ptr += tl.load(sequence_ptr + token).to(tl.int64) * table_width
    seen = tl.load(position_ptr + token) + 1
    length = tl.maximum(tl.cdiv(tl.cdiv(seen, tl.num_programs(1)), BLOCK_S) * BLOCK_S, LEAST_SPLIT)
    start = split * length
    stop = tl.minimum(seen, start + length)
    is_row_r = tl.arange(0, BLOCK_R) < HEADS
    place_r = token.to(tl.int64) * HEADS + tl.arange(0, BLOCK_R)
    if IS_SPLIT:
        lse_ptr += split.to(tl.int64) * num_rows
        out_ptr += split.to(tl.int64) * num_rows * LATENT
        if start >= stop:
            tl.store(lse_ptr + place_r, tl.full((BLOCK_R,), float("-inf"), tl.float32), mask=is_row_r)
            return
    c_c = tl.arange(0, BLOCK_C)
    p_p = tl.arange(0, BLOCK_P)
    WIDTH: tl.constexpr = LATENT + ROTARY
    DTYPE: tl.constexpr = query_ptr.dtype.element_ty
    IS_EXACT: tl.constexpr = query_ptr.dtype.element_ty == tl.float32
    query_rx = query_ptr + place_r[:, None] * WIDTH
    query_rc = tl.load(query_rx + c_c[None, :], mask=is_row_r[:, None] & (c_c < LATENT)[None, :], other=0.0)
    query_rp = tl.load(query_rx + LATENT + p_p[None, :], mask=is_row_r[:, None] & (p_p < ROTARY)[None, :], other=0.0)
    top_r = tl.full((BLOCK_R,), _LOWEST, tl.float32)
    sum_r = tl.zeros((BLOCK_R,), tl.float32)
    mixed_cr = tl.zeros((BLOCK_C, BLOCK_R), tl.float32)
    for tile_start in range(start, stop, BLOCK_S):
        place_s = tile_start + tl.arange(0, BLOCK_S)
        is_known_s = place_s < stop
        block_s = tl.load(table_ptr + place_s // PAGE, mask=is_known_s, other=0).to(tl.int64)
        pool_sx = pool_ptr + (block_s * PAGE + place_s % PAGE)[:, None] * WIDTH
        latent_sc = _load_lanes(pool_sx + c_c[None, :], is_known_s, c_c, LATENT, DTYPE, IS_FP8, NATIVE, LATENT == BLOCK_C)
        rotary_sp = _load_lanes(pool_sx + LATENT + p_p[None, :], is_known_s, p_p, ROTARY, DTYPE, IS_FP8, NATIVE, ROTARY == BLOCK_P)
        score_sr = tl.dot(latent_sc, tl.trans(query_rc), input_precision=PRECISION)
        score_sr = tl.dot(rotary_sp, tl.trans(query_rp), score_sr, input_precision=PRECISION) * (scale * _LOG2_E)
        score_sr = tl.where(is_known_s[:, None], score_sr, -float("inf"))
        new_r = tl.maximum(top_r, tl.max(score_sr, 0))
        weight_sr = tl.exp2(score_sr - new_r[None, :])
        shrink_r = tl.exp2(top_r - new_r)
        sum_r = sum_r * shrink_r + tl.sum(weight_sr, 0)
        mixed_cr *= shrink_r[None, :]
        if IS_EXACT:
            # With 64 rows or more in front, Triton 3.7 hands an exact fp32 product to Blackwell's tensor cores as TF32.
            mixed_cr = tl.trans(tl.dot(tl.trans(weight_sr), latent_sc, tl.trans(mixed_cr), input_precision=PRECISION))
        else:
            mixed_cr = tl.dot(tl.trans(latent_sc), weight_sr.to(DTYPE), mixed_cr, input_precision=PRECISION)
        top_r = new_r
    # Padding sees nothing, and mixes zeros.
    mixed_cr = mixed_cr / tl.where(sum_r == 0.0, 1.0, sum_r)[None, :]
    if IS_SPLIT:
        tl.store(lse_ptr + place_r, top_r + tl.log2(sum_r), mask=is_row_r)
    out_cr = out_ptr + place_r[None, :] * LATENT + c_c[:, None]
    tl.store(out_cr, mixed_cr.to(out_ptr.dtype.element_ty), mask=is_row_r[None, :] & (c_c < LATENT)[:, None])


@triton.jit
def _load_lanes(
    pool_sx,
    is_known_s,
    lane_x,
    WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    IS_FP8: tl.constexpr,
    NATIVE: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Load and widen a tile of the pool, zeros for positions that are not there: what lies in unwritten memory may be NaN."""
    if EVEN:
        tile_sx = tl.load(pool_sx, mask=is_known_s[:, None], other=0)
    else:
        tile_sx = tl.load(pool_sx, mask=is_known_s[:, None] & (lane_x < WIDTH)[None, :], other=0)
    if IS_FP8:
        tile_sx = e4m3_to_fp32(tile_sx, NATIVE)
    return tile_sx.to(DTYPE)
