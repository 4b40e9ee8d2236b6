"""Which rows each block of a grouped product works on: tiles of sorted rows that never span two experts.

Exercise it: ``pytest tests/kernels/ms4_kernels/routing/test_tile_list.py``.

Shape suffixes: e experts (or segments), m tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ms4_kernels.dispatch import Backend, choose


class TileList(NamedTuple):
    """One entry per tile, in the order of the rows; entries left over have start == stop == 0, and their programs return at once.

    Attributes:
        expert_m: int32, the expert (or segment) that the rows belong to; 0 in entries left over.
        start_m: int32, first row.
        stop_m: int32, one past the last row; at most ``start + block_rows``.
    """

    expert_m: Tensor
    start_m: Tensor
    stop_m: Tensor


def num_tiles(num_experts: int, num_rows: int, block_rows: int) -> int:
    """The length of a tile list: an upper bound on the tiles of any routing, known without looking at it.

    Each expert with rows has at most one tile that is not full; at most min(E, R) experts have rows, and at most R // block tiles are full.
    """
    return num_rows // block_rows + min(num_experts, num_rows)


def tile_list(ends_e: Tensor, num_rows: int, block_rows: int, *, backend: Backend = "auto") -> TileList:
    """Cut each expert's rows into tiles of ``block_rows``, the last one of an expert being shorter where they do not fit.

    Args:
        ends_e: int32 [E], one past the last row of each expert, never falling; segment ends do as well.
        num_rows: R, at least ``ends_e[-1]``; rows after that get no tile.
        block_rows: rows of a tile.
        backend: ``auto`` takes one kernel where Triton runs, and torch elsewhere.

    Returns:
        Tensors of :func:`num_tiles` entries on the device of the ends. Nothing waits for the device.

    Raises:
        ValueError: ``block_rows`` is not positive, or the ends are not int32.
    """
    if block_rows < 1:
        raise ValueError(f"block_rows must be positive, got {block_rows}")
    if ends_e.dtype != torch.int32:
        raise ValueError(f"ends must be int32, got {ends_e.dtype}")
    length = num_tiles(ends_e.numel(), num_rows, block_rows)
    if length == 0:
        empty = torch.empty(0, dtype=torch.int32, device=ends_e.device)
        return TileList(empty, empty, empty)
    # The device decides; ends have no floating type, which is what dispatch asks about.
    if choose("tile list", backend, torch.empty(0, device=ends_e.device)) == "triton":
        from ms4_kernels.routing.tile_triton import tile_list_triton  # Triton is optional

        return TileList(*tile_list_triton(ends_e, length, block_rows))
    return _tile_list_torch(ends_e, length, block_rows)


def _tile_list_torch(ends_e: Tensor, length: int, block_rows: int) -> TileList:
    starts_e = F.pad(ends_e[:-1], (1, 0))
    tile_ends_e = ((ends_e - starts_e + (block_rows - 1)) // block_rows).cumsum(0, dtype=torch.int32)
    tile_m = torch.arange(length, dtype=torch.int32, device=ends_e.device)
    expert_m = torch.searchsorted(tile_ends_e, tile_m, right=True, out_int32=True)
    is_tile_m = expert_m < ends_e.numel()
    expert_m = expert_m.where(is_tile_m, 0)
    start_m = starts_e[expert_m] + (tile_m - F.pad(tile_ends_e[:-1], (1, 0))[expert_m]) * block_rows
    stop_m = torch.minimum(start_m + block_rows, ends_e[expert_m])
    return TileList(expert_m, start_m.where(is_tile_m, 0), stop_m.where(is_tile_m, 0))
