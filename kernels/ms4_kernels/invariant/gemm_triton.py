"""A batch of matrix products in Triton with one tile for all sizes, and every sum made in the order of its terms.

Tiles chosen by size, sums cut into parts and libraries' own choices are what makes a row's last digits depend on the number of rows; here
there is nothing to choose. Rows past the end are computed from copies of the last one and not stored.
Exercise it: ``pytest tests/kernels/ms4_kernels/invariant/test_gemm_triton.py``.

Shape suffixes: z matrices, m rows, k terms of the sum, n columns.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel is given has types of Triton's own

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ms4_kernels.moe.triton.operands import precision

_GROUP_M = 8
_STAGES_ON_AMD = 2


@triton.jit(do_not_specialize=["M"])
def gemm_kernel(
    a_ptr, b_ptr, out_ptr, M, N, K, a_stride_z, a_stride_m, a_stride_k, b_stride_z, b_stride_k, b_stride_n,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write out [Z, M, N], contiguous, of a [Z, M, K] and b [Z, K, N] of any strides."""
    num_m = tl.cdiv(M, BLOCK_M)
    num_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    matrix = tl.program_id(1).to(tl.int64)
    first_m = pid // (GROUP_M * num_n) * GROUP_M
    size_m = tl.minimum(num_m - first_m, GROUP_M)
    within = pid % (GROUP_M * num_n)
    row_m = (first_m + within % size_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    col_n = within // size_m * BLOCK_N + tl.arange(0, BLOCK_N)
    k_k = tl.arange(0, BLOCK_K)
    source_m = tl.minimum(row_m, M - 1).to(tl.int64)
    source_n = tl.minimum(col_n, N - 1).to(tl.int64)
    a_ptr_mk = a_ptr + matrix * a_stride_z + source_m[:, None] * a_stride_m
    b_ptr_kn = b_ptr + matrix * b_stride_z + source_n[None, :] * b_stride_n
    acc_mn = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k_start in range(0, K, BLOCK_K):
        place_k = (k_start + k_k).to(tl.int64)
        if EVEN_K:
            a_mk = tl.load(a_ptr_mk + place_k[None, :] * a_stride_k)
            b_kn = tl.load(b_ptr_kn + place_k[:, None] * b_stride_k)
        else:
            a_mk = tl.load(a_ptr_mk + place_k[None, :] * a_stride_k, mask=(place_k < K)[None, :], other=0.0)
            b_kn = tl.load(b_ptr_kn + place_k[:, None] * b_stride_k, mask=(place_k < K)[:, None], other=0.0)
        acc_mn = tl.dot(a_mk, b_kn, acc_mn, input_precision=PRECISION)
    out_ptr_mn = out_ptr + (matrix * M + row_m.to(tl.int64))[:, None] * N + col_n[None, :]
    tl.store(out_ptr_mn, acc_mn.to(out_ptr.dtype.element_ty), mask=(row_m < M)[:, None] & (col_n < N)[None, :])


def multiply_triton(a_zmk: Tensor, b_zkn: Tensor) -> Tensor:
    """Return ``a @ b`` [Z, M, N] in their type: fp32, bf16 or fp16."""
    (matrices, rows, inner), columns = a_zmk.shape, b_zkn.shape[2]
    out_zmn = a_zmk.new_empty(matrices, rows, columns)
    if not out_zmn.numel():
        return out_zmn
    constants, options = tile_constants(a_zmk.dtype, inner)
    if torch.version.hip is not None:
        options["num_stages"] = min(options["num_stages"], _STAGES_ON_AMD)
    grid = (-(-rows // constants["BLOCK_M"]) * -(-columns // constants["BLOCK_N"]), matrices)
    launch: Any = gemm_kernel[grid]
    with torch.cuda.device_of(a_zmk):
        launch(a_zmk, b_zkn, out_zmn, rows, columns, inner, *a_zmk.stride(), *b_zkn.stride(), **constants, **options)
    return out_zmn


def tile_constants(dtype: torch.dtype, inner: int) -> tuple[dict[str, Any], dict[str, int]]:
    """The kernel's constants and launch options, by the type and the number of terms alone."""
    # Exact fp32 products do not use the tensor cores: a small tile, whose operands fit the registers.
    block_m, block_n, block_k, stages = (32, 32, 32, 2) if dtype == torch.float32 else (64, 128, 64, 4)
    constants = {"EVEN_K": inner % block_k == 0, "PRECISION": precision(dtype), "GROUP_M": _GROUP_M}
    return constants | {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}, {"num_warps": 4, "num_stages": stages}
