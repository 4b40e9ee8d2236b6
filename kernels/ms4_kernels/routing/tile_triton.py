"""The tile list of a grouped product in one launch, where plain torch needs a dozen.

Every program adds up the tiles of all experts for itself, and finds the expert of its own tiles by counting the experts that end before.
Imported by ``tile_list`` only where Triton runs. Exercise it: ``pytest tests/kernels/ms4_kernels/routing/test_tile_triton.py``.

Shape suffixes: e experts (or segments) and padding up to a power of two, m tiles of a program.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel is given has types of Triton's own

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

NUM_WARPS = 4
_BLOCK_ELEMENTS = 8192


@triton.jit
def tiles_kernel(
    ends, experts, starts, stops, num_experts, num_tiles, block_rows,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Write expert, first row and end of each tile, int32 [num_tiles], from the ends int32 [num_experts]."""
    expert_e = tl.arange(0, BLOCK_E)
    is_expert_e = expert_e < num_experts
    start_e = tl.load(ends + expert_e - 1, mask=is_expert_e & (expert_e > 0), other=0)
    rows_e = tl.load(ends + expert_e, mask=is_expert_e, other=0) - start_e
    tile_ends_e = tl.cumsum((rows_e + block_rows - 1) // block_rows, 0)

    tile_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_before_me = tile_ends_e[None, :] <= tile_m[:, None]  # padding ends with the last tile, and so comes before surplus entries only
    expert_m = tl.sum(is_before_me.to(tl.int32), 1)
    first_m = tl.max(tl.where(is_before_me, tile_ends_e[None, :], 0), 1)
    is_tile_m = expert_m < num_experts
    start_m = tl.load(ends + expert_m - 1, mask=is_tile_m & (expert_m > 0), other=0) + (tile_m - first_m) * block_rows
    stop_m = tl.minimum(start_m + block_rows, tl.load(ends + expert_m, mask=is_tile_m, other=0))
    is_entry_m = tile_m < num_tiles
    tl.store(experts + tile_m, tl.where(is_tile_m, expert_m, 0), mask=is_entry_m)
    tl.store(starts + tile_m, tl.where(is_tile_m, start_m, 0), mask=is_entry_m)
    tl.store(stops + tile_m, tl.where(is_tile_m, stop_m, 0), mask=is_entry_m)


def constants(num_experts: int) -> dict[str, Any]:
    """The ``tl.constexpr`` arguments: experts padded, and as many tiles as fit the registers beside them."""
    block_e = int(triton.next_power_of_2(num_experts))
    return {"BLOCK_E": block_e, "BLOCK_M": min(64, max(1, _BLOCK_ELEMENTS // block_e))}


def tile_list_triton(ends_e: Tensor, length: int, block_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return expert, first row and end of ``length`` tiles, int32; arguments as for :func:`ms4_kernels.routing.tile_list`."""
    expert_m, start_m, stop_m = torch.empty(3, length, dtype=torch.int32, device=ends_e.device).unbind()
    options = constants(ends_e.numel())
    grid = (-(-length // options["BLOCK_M"]),)
    launch: dict[str, Any] = {**options, "num_warps": NUM_WARPS}
    with torch.cuda.device_of(ends_e):
        tiles_kernel[grid](ends_e.contiguous(), expert_m, start_m, stop_m, ends_e.numel(), length, block_rows, **launch)
    return expert_m, start_m, stop_m
