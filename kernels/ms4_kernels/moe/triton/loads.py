"""What the kernels share: which tile a program works on, where its rows lie, loading a tile of a weight, and the product of the two.

A weight is a stack of matrices [E, O, I] as it is stored: dense, or frozen in E4M3 or NVFP4 codes, which are decoded in registers to the
very values that ``dequantise`` of ``ms4_kernels.quantised`` gives in the type of the rows. An expert's offset is a 64-bit number: the
release's stack has exactly 2^31 elements. Offsets within one matrix are 32-bit.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_loads.py``.

Shape suffixes in the kernels: m rows of a tile, n its output columns, k the terms of the sum, o / i rows and columns of a stored matrix, p
LoRA rank.
"""

# ruff: noqa: ANN001, ANN201, ANN202, E741 - what a kernel is given has types of Triton's own

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate_tile(segment_ptr, start_ptr, stop_ptr, num_m, num_n, GROUP_M: tl.constexpr) -> tuple:
    """Return (segment, first row, one past the last row, column block) of this program.

    Blocks of rows lie in the order of the experts. Programs that run at a time take the same columns of GROUP_M neighbouring blocks, hence
    mostly of one expert, so that its weights are read from memory once and from the cache afterwards; going through all columns of one
    block first would read an expert's matrix, which fills most of the cache, once per block.
    """
    pid = tl.program_id(0)
    first_m = pid // (GROUP_M * num_n) * GROUP_M
    size_m = tl.minimum(num_m - first_m, GROUP_M)
    within = pid % (GROUP_M * num_n)
    tile_m = first_m + within % size_m
    return tl.load(segment_ptr + tile_m), tl.load(start_ptr + tile_m), tl.load(stop_ptr + tile_m), within // size_m


@triton.jit
def source_rows(row_m, stop, pair_ptr, TOP_K: tl.constexpr):
    """Return, int64, where the data of each row lie: the row itself, or its token if TOP_K is not 0.

    Rows past the end stand for the last one: they are computed and not stored, which is cheaper than masking loads in the loop.
    """
    source_m = tl.minimum(row_m, stop - 1).to(tl.int64)
    if TOP_K > 0:
        source_m = tl.load(pair_ptr + source_m) // TOP_K
    return source_m


@triton.jit
def load_rows(row_ptr_mk, k_start, K, EVEN_K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Load columns ``k_start ..`` of the rows at ``row_ptr_mk``, which point at columns 0 .. BLOCK_K - 1."""
    if EVEN_K:
        row_mk = tl.load(row_ptr_mk + k_start)
    else:
        row_mk = tl.load(row_ptr_mk + k_start, mask=(k_start + tl.arange(0, BLOCK_K))[None, :] < K, other=0.0)
    return row_mk


@triton.jit
def e4m3_to_fp32(codes, NATIVE: tl.constexpr):
    """Decode E4M3 bits: by the device's conversion where it has one, else by moving the bits to where fp16 has them."""
    if NATIVE:
        value = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        bits = codes.to(tl.uint16)
        magnitude = bits & 0x7F
        half = (((bits & 0x80) << 8) | (magnitude << 7)).to(tl.float16, bitcast=True)
        value = tl.where(magnitude == 0x7F, float("nan"), half.to(tl.float32) * 256.0)  # the exponents' biases are 7 and 15
    return value


@triton.jit
def e2m1_to_fp32(codes):
    """Decode the low four bits (sign, two of exponent, one of significand) of each code."""
    bits = codes.to(tl.uint16)
    half = (((bits & 0x8) << 12) | ((bits & 0x7) << 9)).to(tl.float16, bitcast=True)
    return half.to(tl.float32) * 16384.0  # the exponents' biases are 1 and 15


@triton.jit
def load_scale(scale_ptr, o_start, O, GROUPS: tl.constexpr, ONE_GROUP: tl.constexpr, BLOCK_O: tl.constexpr):
    """Return the scale of each row [BLOCK_O, 1] of a matrix whose rows form GROUPS equal groups; ONE_GROUP: no tile lies across two."""
    rows_per_group = O // GROUPS
    if ONE_GROUP:
        scale_o1 = tl.full((BLOCK_O, 1), 1.0, tl.float32) * tl.load(scale_ptr + o_start // rows_per_group)
    else:
        row_o = o_start + tl.arange(0, BLOCK_O)
        scale_o1 = tl.load(scale_ptr + row_o // rows_per_group, mask=row_o < O, other=1.0)[:, None]
    return scale_o1


@triton.jit
def load_weight_tile(
    weight_ptr,
    block_scale_ptr,
    scale_ptr,
    expert,
    o_start,
    i_start,
    O,
    I,
    DTYPE: tl.constexpr,
    KIND: tl.constexpr,
    GROUPS: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
    EVEN_O: tl.constexpr,
    EVEN_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Return [BLOCK_O, BLOCK_I] of one expert's matrix [O, I] in DTYPE, zeros outside.

    The pointers are those of the expert: values or codes, E4M3 scales of 16 columns (``nvfp4``), fp32 scales of row groups (``fp8``, where
    they multiply, and ``nvfp4``, where they divide). KIND is ``dense``, ``fp8``, ``nvfp4``, or ``described``: then ``weight_ptr`` is a
    descriptor of a dense stack, of which the device copies tiles by itself, and ``expert`` counts, which nothing else needs.
    """
    if KIND == "nvfp4":
        tile_oi = _load_nvfp4(
            weight_ptr, block_scale_ptr, scale_ptr, o_start, i_start, O, I,
            DTYPE, GROUPS, ONE_GROUP, NATIVE, EVEN_O and EVEN_I, BLOCK_O, BLOCK_I,
        )  # fmt: skip
    elif KIND == "described":
        tile_oi = tl.reshape(weight_ptr.load([expert.to(tl.int32), o_start, i_start]), (BLOCK_O, BLOCK_I))
    else:
        tile_oi = _load_tile(weight_ptr, o_start, i_start, O, I, EVEN_O and EVEN_I, BLOCK_O, BLOCK_I)
    if KIND == "fp8":
        tile_oi = (e4m3_to_fp32(tile_oi, NATIVE) * load_scale(scale_ptr, o_start, O, GROUPS, ONE_GROUP, BLOCK_O)).to(DTYPE)
    return tile_oi


@triton.jit
def _load_tile(ptr, o_start, i_start, O, I, EVEN: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr):
    """Load [BLOCK_O, BLOCK_I] of a matrix [O, I], zeros outside."""
    o_o = tl.arange(0, BLOCK_O)[:, None]
    i_i = tl.arange(0, BLOCK_I)[None, :]
    # The tile's place is one number, and the offsets within it are the same in every step of a loop.
    ptr_oi = ptr + (o_start * I + i_start) + (o_o * I + i_i)
    if EVEN:
        tile_oi = tl.load(ptr_oi)
    else:
        tile_oi = tl.load(ptr_oi, mask=(o_start + o_o < O) & (i_start + i_i < I), other=0)
    return tile_oi


@triton.jit
def _load_nvfp4(
    code_ptr,
    block_scale_ptr,
    scale_ptr,
    o_start,
    i_start,
    O,
    I,
    DTYPE: tl.constexpr,
    GROUPS: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Load and decode a tile of NVFP4; ``i_start`` is a multiple of 16. In 3-D: o rows, b blocks of 16 columns, j bytes of a block."""
    code_oj = _load_tile(code_ptr, o_start, i_start // 2, O, I // 2, EVEN, BLOCK_O, BLOCK_I // 2)
    scale_ob = e4m3_to_fp32(_load_tile(block_scale_ptr, o_start, i_start // 16, O, I // 16, EVEN, BLOCK_O, BLOCK_I // 16), NATIVE)
    divisor_o1 = load_scale(scale_ptr, o_start, O, GROUPS, ONE_GROUP, BLOCK_O)
    scale_obj = tl.div_rn(scale_ob, tl.broadcast_to(divisor_o1, (BLOCK_O, BLOCK_I // 16)))[:, :, None]
    code_obj = tl.reshape(code_oj, (BLOCK_O, BLOCK_I // 16, 8))
    even_obj = (e2m1_to_fp32(code_obj) * scale_obj).to(DTYPE)
    odd_obj = (e2m1_to_fp32(code_obj >> 4) * scale_obj).to(DTYPE)
    return tl.reshape(tl.join(even_obj, odd_obj), (BLOCK_O, BLOCK_I))


@triton.jit
def multiply(row_mk, weight_oi, acc, K_INNER: tl.constexpr, SWAP: tl.constexpr, PRECISION: tl.constexpr):
    """Add rows times weight to ``acc`` [M, N], or [N, M] if SWAP. K_INNER: the columns of the stored matrix are the terms of the sum."""
    if K_INNER == SWAP:
        factor = weight_oi
    else:
        factor = tl.trans(weight_oi)
    if SWAP:
        acc = tl.dot(factor, tl.trans(row_mk), acc, input_precision=PRECISION)
    else:
        acc = tl.dot(row_mk, factor, acc, input_precision=PRECISION)
    return acc


@triton.jit
def add_low_rank(
    acc,
    low_ptr,
    factor_ptr,
    source_m,
    n_start,
    N,
    RANK: tl.constexpr,
    K_INNER: tl.constexpr,
    SWAP: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add rows ``low`` [R, RANK] times columns ``n_start ..`` of one LoRA factor, stored [N, RANK] if K_INNER, else [RANK, N].

    The LoRA scale is already in ``low``. Exact fp32 products hold whole operands in registers, which a large rank would overfill: they take
    the rank in parts, one after another.
    """
    PART: tl.constexpr = 32  # pyright: ignore[reportAssignmentType]
    if low_ptr.dtype.element_ty == tl.float32 and BLOCK_RANK > PART:
        for p_start in tl.range(0, RANK, PART, num_stages=1):  # pyright: ignore[reportGeneralTypeIssues]
            acc = _add_terms(
                acc, low_ptr, factor_ptr, source_m, p_start, n_start, N,
                RANK, K_INNER, SWAP, PRECISION, RANK % PART == 0, EVEN_N, PART, BLOCK_N,
            )  # fmt: skip
    else:
        acc = _add_terms(
            acc, low_ptr, factor_ptr, source_m, 0, n_start, N,
            RANK, K_INNER, SWAP, PRECISION, RANK == BLOCK_RANK, EVEN_N, BLOCK_RANK, BLOCK_N,
        )  # fmt: skip
    return acc


@triton.jit
def _add_terms(
    acc,
    low_ptr,
    factor_ptr,
    source_m,
    p_start,
    n_start,
    N,
    RANK: tl.constexpr,
    K_INNER: tl.constexpr,
    SWAP: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_RANK: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the terms ``p_start`` .. ``p_start + BLOCK_RANK - 1`` of the sum over the rank."""
    p_p = tl.arange(0, BLOCK_RANK)[None, :]
    low_mp = load_rows(low_ptr + source_m[:, None] * RANK + p_p, p_start, RANK, EVEN_RANK, BLOCK_RANK)
    DTYPE: tl.constexpr = low_ptr.dtype.element_ty
    if K_INNER:
        factor_oi = load_weight_tile(
            factor_ptr, None, None, 0, n_start, p_start, N, RANK,
            DTYPE, "dense", 1, True, False, EVEN_N, EVEN_RANK, BLOCK_N, BLOCK_RANK,
        )  # fmt: skip
    else:
        factor_oi = load_weight_tile(
            factor_ptr, None, None, 0, p_start, n_start, RANK, N,
            DTYPE, "dense", 1, True, False, EVEN_RANK, EVEN_N, BLOCK_RANK, BLOCK_N,
        )  # fmt: skip
    return multiply(low_mp, factor_oi, acc, K_INNER, SWAP, PRECISION)


@triton.jit
def halves(part, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr):
    """Split [BLOCK_M, WIDTH] into its left and right halves."""
    return tl.split(tl.permute(tl.reshape(part, (BLOCK_M, 2, WIDTH // 2)), (0, 2, 1)))
