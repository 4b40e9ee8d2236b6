"""Small Triton kernels with known good and known bad compiled forms, on which the compile report and its gates are tried."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ms4_kernels.specimen import Specimen


@triton.jit
def product(x, w, y, R, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """y = x w^T through pointers."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        left = tl.load(x + row[:, None].to(tl.int64) * K + k + inner[None, :], mask=(row < R)[:, None], other=0.0)
        right = tl.load(w + column[:, None].to(tl.int64) * K + k + inner[None, :])
        total = tl.dot(left, right.T, total)
    tl.store(y + row[:, None].to(tl.int64) * N + column[None, :], total.to(y.dtype.element_ty), mask=(row < R)[:, None])


@triton.jit
def pair(x, w, y, R, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Two products at once, both of which live in registers: too many with large tiles and few warps."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        left = tl.load(x + row[:, None].to(tl.int64) * K + k + inner[None, :], mask=(row < R)[:, None], other=0.0)
        right = w + column[:, None].to(tl.int64) * K + k + inner[None, :]
        gate = tl.dot(left, tl.load(right).T, gate)
        up = tl.dot(left, tl.load(right + N * K).T, up)
    out = gate * tl.sigmoid(gate) * up
    tl.store(y + row[:, None].to(tl.int64) * N + column[None, :], out.to(y.dtype.element_ty), mask=(row < R)[:, None])


@triton.jit
def scalar_product(x, w, y, R, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """The same product as ``product``, in a way that no tensor core can serve."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(K):
        left = tl.load(x + row.to(tl.int64) * K + k, mask=row < R, other=0.0).to(tl.float32)
        total += left[:, None] * tl.load(w + column.to(tl.int64) * K + k).to(tl.float32)[None, :]
    tl.store(y + row[:, None].to(tl.int64) * N + column[None, :], total.to(y.dtype.element_ty), mask=(row < R)[:, None])


@triton.jit
def specialised(x, w, y, R, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """The same product with descriptors that are handed in, asking for warps that load and warps that multiply."""
    first, column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in tl.range(0, tl.cdiv(K, BLOCK_K), warp_specialize=True):
        total = tl.dot(x.load([first, k * BLOCK_K]), w.load([column, k * BLOCK_K]).T, total)
    y.store([first, column], total.to(tl.bfloat16))


def sample(kernel: Any, rows: int = 128, columns: int = 128, *, warps: int = 8, stages: int = 3, **more: Any) -> Specimen:
    """A specimen of one of the kernels above, with an inner tile of 64."""
    constants = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": 64}
    arguments = {"R": "i32", "N": "i32:16", "K": "i32:16"} | dict.fromkeys(("x", "w", "y"), "*bf16:16")
    if kernel is specialised:
        tiles = {"x": (rows, 64), "w": (columns, 64), "y": (rows, columns)}
        arguments |= {name: f"tensordesc<bf16[{height},{width}]>" for name, (height, width) in tiles.items()}
    settings = {"operation": "sample", "name": kernel.__name__, "block": (rows, columns), "rows_per_expert": 256} | more
    return Specimen(kernel=kernel, arguments=arguments, constants=constants, num_warps=warps, num_stages=stages, **settings)
