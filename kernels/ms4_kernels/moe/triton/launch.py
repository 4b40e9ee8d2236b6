"""Launching the kernels: outputs are allocated, tiles chosen, constants and grids made out, in one function per kernel.

The ``..._constants`` functions serve the launches and ``specimens.py``, so that what is compiled ahead of time is what is launched.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_launch.py``.

Shape suffixes: t tokens, k experts per token, r rows sorted by expert, d hidden, n expert intermediate, i = 2n, p LoRA rank, o / i rows and
columns of a matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ms4_kernels.moe.triton.combine import combine_kernel
from ms4_kernels.moe.triton.dh import dh_kernel
from ms4_kernels.moe.triton.gram import gram_kernel
from ms4_kernels.moe.triton.grouped import grouped_kernel
from ms4_kernels.moe.triton.operands import Factor, Rows, Stack, precision, stack_constants
from ms4_kernels.moe.triton.tiles import Tile, dh_tile, gram_tile, grouped_tile, low_rank_tile, padded_rank, stages_that_fit, up_tile
from ms4_kernels.moe.triton.up import up_kernel

__all__ = ["combine", "combine_constants", "dh", "gram", "gram_constants", "grouped", "low_rank", "product_constants", "up"]

_GROUP_M = 8
_BLOCK_D = 1024
_STAGES_ON_AMD = 2
"""More loads in flight do not fit the 64 KiB that its compute units have for them."""


def product_constants(tile: Tile, columns: int, inner: int, rank: int, slots: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants that every kernel over a tile list has; ``rank`` is 0 without a low-rank tail."""
    return {
        "SLOTS": slots,
        "RANK": rank,
        "BLOCK_RANK": padded_rank(rank) if rank else 16,
        "SWAP": tile.swap,
        "PRECISION": precision(dtype),
        "EVEN_N": columns % tile.block_n == 0,
        "EVEN_K": inner % tile.block_k == 0,
        "GROUP_M": _GROUP_M,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
    }


def gram_constants(tile: Tile, outputs: int, inputs: int, slots: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants of the gram kernel that its shape gives."""
    return {
        "SLOTS": slots,
        "PRECISION": precision(dtype),
        "EVEN_O": outputs % tile.block_m == 0,
        "EVEN_I": inputs % tile.block_n == 0,
        "BLOCK_O": tile.block_m,
        "BLOCK_I": tile.block_n,
        "BLOCK_R": tile.block_k,
    }


def combine_constants(hidden_size: int, top_k: int, weighted: bool) -> dict[str, Any]:
    """The constants of the combine kernel."""
    block = min(_BLOCK_D, 1 << (hidden_size - 1).bit_length())
    return {"TOP_K": top_k, "WEIGHTED": weighted, "EVEN_D": hidden_size % block == 0, "BLOCK_D": block}


def up(
    hidden_td: Tensor,
    stack_eid: Stack,
    rows: Rows,
    low_rp: Tensor | None = None,
    factor: Factor | None = None,
    *,
    save_h: bool = True,
    save_act: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the pre-activation H [R, 2n] and the activation A [R, n], each only if asked for."""
    width, inner = stack_eid.matrix[0] // 2, stack_eid.matrix[1]
    tile = up_tile(rows.per_expert, hidden_td.dtype, stack_eid.kind)
    h_ri = hidden_td.new_empty(rows.count, 2 * width) if save_h else None
    act_rn = hidden_td.new_empty(rows.count, width) if save_act else None
    arguments = {"hidden_ptr": hidden_td, "h_ptr": h_ri, "act_ptr": act_rn, "N": width, "K": inner, "TOP_K": rows.top_k}
    arguments |= {"SAVE_H": save_h, "SAVE_ACT": save_act, "SPLIT": tile.split} | stack_eid.arguments(tile.block_n, tile.block_k)
    _launch(up_kernel, tile, rows, hidden_td.dtype, arguments, low_rp, factor)
    return h_ri, act_rn


def grouped(
    rows_rk: Tensor, stack: Stack, rows: Rows, low_rp: Tensor | None = None, factor: Factor | None = None, *, k_inner: bool
) -> Tensor:
    """Return rows times the experts' matrices plus the low-rank tail, [R, N]; the matrices are [N, K] if ``k_inner``, else [K, N]."""
    columns, inner = stack.matrix if k_inner else stack.matrix[::-1]
    tile = grouped_tile(rows.per_expert, rows_rk.dtype, stack.kind)
    out_rn = rows_rk.new_empty(rows.count, columns)
    arguments = {"rows_ptr": rows_rk, "out_ptr": out_rn, "N": columns, "K": inner, "multiplier": 1.0, "weight_stride_l": 0, "TOP_K": 0}
    arguments |= {"IS_FACTOR": False, "K_INNER": k_inner}
    arguments |= stack.arguments(*((tile.block_n, tile.block_k) if k_inner else (tile.block_k, tile.block_n)))
    _launch(grouped_kernel, tile, rows, rows_rk.dtype, arguments, low_rp, factor)
    return out_rn


def low_rank(rows_xk: Tensor, factor: Factor, rows: Rows, scale: float, *, gathered: bool, k_inner: bool) -> Tensor:
    """Return ``scale`` times rows (of tokens if ``gathered``) times one LoRA factor, [R, p]; nothing is written for rows without adapter.

    The scale is applied in fp32 before the only rounding, and so is in all that is computed from the result.
    """
    matrix = factor.values.shape[-2:]
    rank, inner = matrix if k_inner else matrix[::-1]
    tile = low_rank_tile(rows.per_expert, rows_xk.dtype, rank)
    out_rp = rows_xk.new_empty(rows.count, rank)
    arguments = {"rows_ptr": rows_xk, "out_ptr": out_rp, "N": rank, "K": inner, "multiplier": float(scale), "IS_FACTOR": True}
    arguments |= {"TOP_K": rows.top_k if gathered else 0, "K_INNER": k_inner, "weight_stride_l": factor.stride_l}
    arguments |= {"weight_ptr": factor.values, "scale_ptr": None, "block_scale_ptr": None, "block_scale_stride_e": 0}
    arguments |= {"weight_stride_e": factor.stride_e} | stack_constants("dense", 1, rank, tile.block_n, False)
    _launch(grouped_kernel, tile, rows, rows_xk.dtype, arguments)
    return out_rp


def dh(
    dout_td: Tensor,
    stack_edn: Stack,
    rows: Rows,
    weights_tk: Tensor,
    h_ri: Tensor,
    low_rp: Tensor | None = None,
    factor: Factor | None = None,
    *,
    save_act: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return dH [R, 2n], the weighted activation A' [R, n] if asked for, and ``<dA', A>`` of each row, fp32 [R + 1].

    The last of these is 0: what a slot without a row (-1) reads.
    """
    inner, width = stack_edn.matrix
    tile = dh_tile(rows.per_expert, dout_td.dtype, stack_edn.kind)
    dh_ri = torch.empty_like(h_ri)
    act_rn = h_ri.new_empty(rows.count, width) if save_act else None
    dot_rx = h_ri.new_empty(rows.count + 1, _blocks(width, tile.block_n), dtype=torch.float32)
    dot_rx[-1].zero_()
    arguments = {"dout_ptr": dout_td, "route_ptr": weights_tk, "h_ptr": h_ri, "dh_ptr": dh_ri, "act_ptr": act_rn, "dot_ptr": dot_rx}
    arguments |= {"N": width, "K": inner, "TOP_K": rows.top_k, "SAVE_ACT": save_act, "SPLIT": tile.split}
    arguments |= stack_edn.arguments(tile.block_k, tile.block_n)
    _launch(dh_kernel, tile, rows, dout_td.dtype, arguments, low_rp, factor)
    return dh_ri, act_rn, dot_rx.sum(dim=1)


def gram(left: Tensor, right: Tensor, rows: Rows, out: Tensor, *, gather_left: bool = False, gather_right: bool = False) -> None:
    """Write ``left_s^T right_s`` of each segment into ``out``, contiguous: [E, O, I], or [L, E, O, I] where rows are sorted by adapter.

    A stack [E, O, I] of a batch with adapters gets the sums over all rows of each expert. Sides that are gathered are those of tokens.
    """
    outputs, inputs = left.shape[1], right.shape[1]
    slots = rows.slots if out.ndim == 4 else 1
    ends = rows.ends if out.ndim == 4 else rows.order.ends_e
    transposed = outputs < inputs and outputs <= _NARROW  # the wide side must be the left one
    if transposed:
        left, right, outputs, inputs, gather_left, gather_right = right, left, inputs, outputs, gather_right, gather_left
    tile = gram_tile(left.dtype, outputs, inputs)
    programs = ends.numel() * _blocks(outputs, tile.block_m) * _blocks(inputs, tile.block_n)
    if programs == 0:
        return
    arguments = {"left_ptr": left, "right_ptr": right, "pair_ptr": rows.order.pair_r, "ends_ptr": ends, "out_ptr": out}
    arguments |= {"O": outputs, "I": inputs, "out_stride_l": out.stride(0) if out.ndim == 4 else 0, "out_stride_e": out.stride(-3)}
    arguments |= {"LEFT_TOP_K": rows.top_k if gather_left else 0, "RIGHT_TOP_K": rows.top_k if gather_right else 0}
    arguments |= {"TRANSPOSED": transposed, "num_warps": tile.num_warps}
    arguments |= {"num_stages": _stages(tile, tile.block_n, left.device, left.dtype)}
    _run(gram_kernel, (programs,), arguments | gram_constants(tile, outputs, inputs, slots, left.dtype))


def combine(rows_rd: Tensor, row_tk: Tensor, weights_tk: Tensor | None = None) -> Tensor:
    """Return ``out[t] = sum_k weights[t, k] * rows[row_tk[t, k]]``, without weights the plain sum, [T, d] in the type of the rows.

    A slot whose row is -1 adds nothing.
    """
    (tokens, top_k), hidden_size = row_tk.shape, rows_rd.shape[1]
    out_td = rows_rd.new_empty(tokens, hidden_size)
    constants = combine_constants(hidden_size, top_k, weights_tk is not None)
    if tokens:
        grid = (tokens, _blocks(hidden_size, constants["BLOCK_D"]))
        arguments = {"rows_ptr": rows_rd, "row_ptr": row_tk, "weight_ptr": weights_tk, "out_ptr": out_td, "D": hidden_size}
        _run(combine_kernel, grid, arguments | constants | {"num_warps": 4})
    return out_td


_NARROW = 128
"""The largest LoRA rank that has a tile of its own."""


def _launch(
    kernel: Any,
    tile: Tile,
    rows: Rows,
    dtype: torch.dtype,
    arguments: dict[str, Any],
    low_rp: Tensor | None = None,
    factor: Factor | None = None,
) -> None:
    """Launch over the tiles of the rows, which are of ``dtype``, with the tail that ``low_rp`` [R, p] and the factor make."""
    segment_m, start_m, stop_m = rows.tiles(tile.block_m)
    num_m, columns = start_m.numel(), arguments["N"]
    if num_m == 0:
        return
    rank = 0 if low_rp is None else low_rp.shape[1]
    arguments = arguments | {
        "pair_ptr": rows.order.pair_r,
        "segment_ptr": segment_m,
        "start_ptr": start_m,
        "stop_ptr": stop_m,
        "num_m": num_m,
    }
    arguments |= {
        "low_ptr": low_rp,
        "factor_ptr": None if factor is None else factor.values,
        "factor_stride_l": 0 if factor is None else factor.stride_l,
        "factor_stride_e": 0 if factor is None else factor.stride_e,
    }
    constants = product_constants(tile, columns, arguments["K"], rank, rows.slots, dtype)
    grid = (num_m * _blocks(columns, tile.block_n),)
    stages = _stages(tile, tile.block_n * (2 if kernel is up_kernel else 1), rows.order.pair_r.device, dtype)
    _run(kernel, grid, arguments | constants | {"num_warps": tile.num_warps, "num_stages": stages})


def _run(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    kernel[grid](**arguments)


def _stages(tile: Tile, columns: int, device: torch.device, dtype: torch.dtype) -> int:
    if device.type != "cuda":
        return tile.num_stages
    if torch.version.hip is not None:
        return min(tile.num_stages, _STAGES_ON_AMD)
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return stages_that_fit(tile, columns, dtype.itemsize, shared)


def _blocks(length: int, block: int) -> int:
    return -(-length // block)
