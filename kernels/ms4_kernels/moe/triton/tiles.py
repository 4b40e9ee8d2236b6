"""How large a tile each kernel works on, by the rows an expert has on average.

Few rows per expert are bound by reading weights, and a tall tile would only compute padding; many are bound by the tensor cores, which
want tall tiles. Tall enough for a tile to be worth it, and no taller: rows padded per expert are half a tile on average.
Every tile that is listed here is compiled ahead of time by ``make kernels-report``: none spills registers.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_tiles.py``.

Not covered: measured tuning. The numbers of warps and stages are those whose registers and shared memory fit, not those that were fastest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Tile", "block_rows", "dh_tile", "gram_tile", "grouped_tile", "low_rank_tile", "padded_rank", "stages_that_fit", "up_tile"]

_BUCKETS = ((16, 16), (48, 32), (256, 64))  # (rows per expert below which, rows of a tile)
_LARGEST = 128
_MANY = 1024
"""Rows per expert from which two tensor core instructions side by side have enough rows to be worth their registers."""
_UNITS_ROWS = 64
"""The least rows (or columns) that Hopper's and Blackwell's tensor core instructions take from their first operand."""


@dataclass(frozen=True)
class Tile:
    """The shape of a program's work and how it is compiled.

    Attributes:
        block_m: rows of tokens.
        block_n: output columns. The up kernel computes as many of the gate and as many of the up projection.
        block_k: terms of the sum that are loaded at a time.
        num_warps: warps of a program.
        num_stages: loads in flight.
        swap: multiply weight by rows instead of rows by weight, which lets a tile of few rows fill the tensor cores.
        split: parts in which the epilogue walks over the columns, so that its operands fit the registers.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    swap: bool = False
    split: int = 1


def block_rows(rows_per_expert: float) -> int:
    """Rows of a tile in half precision: 16, 32, 64, or 128 from 256 rows per expert up."""
    return next((rows for below, rows in _BUCKETS if rows_per_expert < below), _LARGEST)


def padded_rank(rank: int) -> int:
    """The power of two, at least 16 (the least that a product takes), that holds a LoRA rank."""
    return max(16, 1 << (rank - 1).bit_length())


def up_tile(rows_per_expert: float, dtype: torch.dtype, kind: str = "dense") -> Tile:
    """The tile of the up-projection: two accumulators of ``block_m x block_n``, so a tile of H twice as wide."""
    if dtype == torch.float32:
        # With four warps to 16 rows the compiler aims at one more program per multiprocessor and spills a few bytes for it.
        return _single_precision(rows_per_expert, 2)
    if rows_per_expert >= _MANY and kind == "dense":
        return Tile(128, 128, 64, 8, 3, split=2)  # in one part the epilogue spills 12 bytes
    few = _few_rows(rows_per_expert)
    return few or {64: Tile(64, 64, 64, 4, 4), 128: Tile(128, 64, 64, 8, 3, split=2)}[block_rows(rows_per_expert)]


def grouped_tile(rows_per_expert: float, dtype: torch.dtype, kind: str = "dense") -> Tile:
    """The tile of the down-projection and of the input gradient."""
    if dtype == torch.float32:
        return _single_precision(rows_per_expert)
    if rows_per_expert >= _MANY and kind == "dense":
        return Tile(128, 256, 64, 8, 3)
    few = _few_rows(rows_per_expert)
    return few or {64: Tile(64, 128, 64, 4, 4), 128: Tile(128, 128, 64, 8, 3)}[block_rows(rows_per_expert)]


def dh_tile(rows_per_expert: float, dtype: torch.dtype, kind: str = "dense") -> Tile:
    """The tile of the gradient of the pre-activation, whose epilogue needs most registers."""
    if dtype == torch.float32:
        return _single_precision(rows_per_expert)
    few = _few_rows(rows_per_expert)
    # In four parts the large one would take 136 registers, and 128, with which two programs fit a multiprocessor, spill 4 bytes.
    return few or {64: Tile(64, 128, 64, 4, 4, split=4), 128: Tile(128, 128, 64, 8, 3, split=2)}[block_rows(rows_per_expert)]


def low_rank_tile(rows_per_expert: float, dtype: torch.dtype, rank: int) -> Tile:
    """The tile of a product whose output has as many columns as a LoRA rank: at least 64 rows, for the columns are too few to swap."""
    if dtype == torch.float32:
        return Tile(32, min(padded_rank(rank), 32), 32, 4, 2)
    rows = max(_UNITS_ROWS, block_rows(rows_per_expert))
    return Tile(rows, padded_rank(rank), 64, 8 if rows * padded_rank(rank) >= 128 * 128 else 4, 4)


def gram_tile(dtype: torch.dtype, outputs: int, inputs: int) -> Tile:
    """The tile of ``left^T right`` [outputs, inputs] over the rows of an expert; ``block_k`` counts rows.

    The left side is the wider one where one of them is a LoRA rank.
    """
    narrow = padded_rank(inputs)
    if dtype == torch.float32:
        return Tile(32, min(narrow, 32), 32, 4, 2)
    return Tile(128, 128, 64, 8, 3) if narrow >= 128 else Tile(128, narrow, 64, 4, 3)


def stages_that_fit(tile: Tile, columns: int, element_size: int, shared_bytes: int) -> int:
    """As many loads in flight as the tile asks for, or fewer where a device has less memory for them than the H100 of the choices above.

    Args:
        tile: rows and terms of the sum of one load.
        columns: weight columns of one load: ``block_n``, or twice that in the up-projection.
        element_size: bytes of a row's element; codes take less.
        shared_bytes: what a program may have.
    """
    return max(1, min(tile.num_stages, shared_bytes // ((tile.block_m + columns) * tile.block_k * element_size)))


def _few_rows(rows_per_expert: float) -> Tile | None:
    rows = block_rows(rows_per_expert)
    return Tile(rows, 64, 128, 4, 4, swap=True) if rows < _UNITS_ROWS else None


def _single_precision(rows_per_expert: float, warps_for_few: int = 4) -> Tile:
    """Exact fp32 products do not use the tensor cores: small tiles, whose accumulators leave room for the operands."""
    return Tile(16, 32, 32, warps_for_few, 2) if rows_per_expert < 16 else Tile(32, 32, 32, 4, 2)
