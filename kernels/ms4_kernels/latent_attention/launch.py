"""Launching the kernels: outputs are allocated, tiles and splits chosen, in one function per operation, without a look at any value.

The ``..._constants`` functions serve the launches and ``specimens.py``, so that what is compiled ahead of time is what is launched.
Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention/test_launch.py``.

Shape suffixes: t new tokens, h heads, m latent and rotary key, c latent; n blocks, s tokens of a block; k splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ms4_kernels.invariant.switch import is_on
from ms4_kernels.latent_attention.attend_kernel import attend_kernel
from ms4_kernels.latent_attention.combine_kernel import combine_splits_kernel
from ms4_kernels.latent_attention.plan import LatentPlan
from ms4_kernels.latent_attention.write_kernel import write_kernel
from ms4_kernels.moe.triton.operands import has_e4m3, precision

__all__ = ["attend_constants", "attend_tile", "attend_triton", "choose_splits", "write_triton"]

INVARIANT_SPLITS = 4
"""Inside ``batch_invariant()``, for all tokens; each takes a kilobyte of scratch memory per token and head at the release's sizes."""
LEAST_SPLIT = 256
"""Positions; a shorter split costs more in joining than it gains."""
_MOST_SPLITS = 64
_PROGRAMS_PER_MULTIPROCESSOR = 2
_FEW_MULTIPROCESSORS = 108


@dataclass(frozen=True)
class AttendTile:
    """``positions`` that a program works on at once, and how it is compiled."""

    positions: int
    num_warps: int
    num_stages: int


def attend_tile(heads: int, dtype: torch.dtype) -> AttendTile:
    """The tile for so many heads and this type of queries. Exact fp32 products use no tensor cores, and hold operands in registers."""
    if dtype == torch.float32:
        return AttendTile(16, 8, 1)
    return AttendTile(64, 4 if heads <= 32 else 8, 2)


def attend_constants(tile: AttendTile, heads: int, latent: int, width: int, page: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants of the attend kernel that sizes and types give."""
    return {
        "HEADS": heads,
        "LATENT": latent,
        "ROTARY": width - latent,
        "PAGE": page,
        "PRECISION": precision(dtype),
        "LEAST_SPLIT": LEAST_SPLIT,
        "BLOCK_S": tile.positions,
        "BLOCK_R": _padded(heads),
        "BLOCK_C": _padded(latent),
        "BLOCK_P": _padded(width - latent),
    }


def choose_splits(tokens: int, context: int, num_splits: int | None, multiprocessors: int) -> int:
    """Into how many parts each token's context is cut.

    Args:
        tokens: programs that one split has.
        context: a bound of what a token sees, in positions. Where it is far off, splits are empty and return at once.
        num_splits: as asked for. None: enough programs to fill the device, or one number inside the mode.
        multiprocessors: of the device.
    """
    if num_splits is not None:
        return num_splits
    if is_on():
        return INVARIANT_SPLITS
    wanted = min(_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // max(tokens, 1), _MOST_SPLITS)
    return max(1, min(wanted, -(-context // LEAST_SPLIT)))


def attend_triton(query_thm: Tensor, pool_nsm: Tensor, plan: LatentPlan, scale: float, latent_rank: int, num_splits: int | None) -> Tensor:
    """Return [T, h, c]; arguments as those of :func:`ms4_kernels.latent_attention.latent_attention`."""
    tokens, heads, width = query_thm.shape
    page = pool_nsm.shape[1]
    mixed_thc = query_thm.new_empty(tokens, heads, latent_rank)
    if tokens == 0:
        return mixed_thc
    is_fp8 = pool_nsm.dtype == torch.float8_e4m3fn
    tile = attend_tile(heads, query_thm.dtype)
    splits = choose_splits(tokens, plan.context_bound(page), num_splits, _multiprocessors(query_thm.device))
    parts_kthc = lse_kth = None
    if splits > 1:
        parts_kthc = query_thm.new_empty(splits, tokens, heads, latent_rank, dtype=torch.float32)
        lse_kth = query_thm.new_empty(splits, tokens, heads, dtype=torch.float32)
    arguments = {
        "query_ptr": query_thm.contiguous(),
        "pool_ptr": pool_nsm.view(torch.uint8) if is_fp8 else pool_nsm,
        "table_ptr": plan.tables_bj,
        "sequence_ptr": plan.sequence_t,
        "position_ptr": plan.position_t,
        "out_ptr": mixed_thc if parts_kthc is None else parts_kthc,
        "lse_ptr": lse_kth,
        "table_width": plan.tables_bj.shape[1],
        "num_rows": tokens * heads,
        "scale": scale,
        "IS_FP8": is_fp8,
        "NATIVE": is_fp8 and has_e4m3(pool_nsm.device),
        "IS_SPLIT": splits > 1,
    }
    arguments |= attend_constants(tile, heads, latent_rank, width, page, query_thm.dtype)
    with torch.cuda.device_of(query_thm):
        _run(attend_kernel, (tokens, splits), arguments | {"num_warps": tile.num_warps, "num_stages": tile.num_stages})
        if parts_kthc is not None:
            joined = {"part_ptr": parts_kthc, "lse_ptr": lse_kth, "out_ptr": mixed_thc, "num_splits": splits, "num_rows": tokens * heads}
            _run(combine_splits_kernel, (tokens * heads,), joined | {"LATENT": latent_rank, "BLOCK_C": _padded(latent_rank)})
    return mixed_thc


def write_triton(pool_nsm: Tensor, latent_tm: Tensor, slot_t: Tensor) -> None:
    """As :func:`ms4_kernels.latent_attention.write_latents`."""
    tokens, width = latent_tm.shape
    if tokens == 0:
        return
    if latent_tm.stride(1) != 1:
        latent_tm = latent_tm.contiguous()
    is_fp8 = pool_nsm.dtype == torch.float8_e4m3fn
    arguments = {"pool_ptr": pool_nsm.view(torch.uint8) if is_fp8 else pool_nsm, "latent_ptr": latent_tm, "slot_ptr": slot_t.contiguous()}
    arguments |= {"latent_stride_t": latent_tm.stride(0), "WIDTH": width, "IS_FP8": is_fp8, "BLOCK_M": _padded(width)}
    with torch.cuda.device_of(latent_tm):
        _run(write_kernel, (tokens,), arguments)


def _run(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    kernel[grid](**arguments)


def _padded(length: int) -> int:
    """The power of two, at least 16 (the least that a product takes), that holds it."""
    return max(16, 1 << max(length - 1, 0).bit_length())


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _FEW_MULTIPROCESSORS
