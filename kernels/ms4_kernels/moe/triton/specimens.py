"""The compiled forms in which the kernels are shipped: bf16 at the release's sizes, in every tile, with dense, FP8 and NVFP4 stacks.

Constants come from the functions that the launcher uses.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_specimens.py``, and ``make kernels-report``, which compiles them.

Not covered: forms that differ in little (without saving H, other top-k or ranks, fp16), and fp32, which does without tensor cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ms4_kernels.moe.triton import tiles
from ms4_kernels.moe.triton.combine import combine_kernel
from ms4_kernels.moe.triton.dh import dh_kernel
from ms4_kernels.moe.triton.gram import gram_kernel
from ms4_kernels.moe.triton.grouped import grouped_kernel
from ms4_kernels.moe.triton.launch import combine_constants, gram_constants, product_constants
from ms4_kernels.moe.triton.operands import stack_constants
from ms4_kernels.moe.triton.tiles import Tile
from ms4_kernels.moe.triton.up import up_kernel
from ms4_kernels.specimen import Specimen

__all__ = ["specimens"]

_HIDDEN, _WIDTH, _TOP_K = 4096, 2048, 4
_BF16 = torch.bfloat16
_BUCKETS = (1, 16, 48, 256, 1024)
"""Rows per expert at which another tile begins."""
_RANKS = (16, 32, 128)
_KINDS: dict[str, dict[str, str | None]] = {
    "dense": {"weight_ptr": "*bf16:16", "scale_ptr": None, "block_scale_ptr": None},
    "described": {"weight_ptr": "tensordesc", "scale_ptr": None, "block_scale_ptr": None},
    "fp8": {"weight_ptr": "*u8:16", "scale_ptr": "*fp32:16", "block_scale_ptr": None},
    "nvfp4": {"weight_ptr": "*u8:16", "scale_ptr": "*fp32:16", "block_scale_ptr": "*u8:16"},
}
_TILES = {"pair_ptr": "*i64:16", "segment_ptr": "*i32:16", "start_ptr": "*i32:16", "stop_ptr": "*i32:16", "num_m": "i32"}
_SIZES = {"N": "i32:16", "K": "i32:16", "weight_stride_e": "i32:16"}
_LOW = {"low_ptr": "*bf16:16", "factor_ptr": "*bf16:16", "factor_stride_e": "i32:16"}


def specimens() -> list[Specimen]:
    """Every shipped form. Those of `make test` are of 256 rows per expert: dense as Hopper gets it with LoRA, FP8 and NVFP4 without."""
    return [*_products(), *_low_rank(), *_grams(), _combine()]


def _products() -> Iterator[Specimen]:
    for kind in _KINDS:
        for rows in _BUCKETS:
            for rank in (0, *_RANKS):
                if kind in ("fp8", "nvfp4") and (rank not in (0, 16) or rows == _BUCKETS[-1]):
                    continue  # the tail comes after the loop, where the kind no longer matters; the widest tiles are for dense stacks
                yield from _three_products(kind, rows, rank)


def _three_products(kind: str, rows: int, rank: int) -> Iterator[Specimen]:
    suffix = f"{'' if kind == 'dense' else ' ' + kind}{f' r{rank}' if rank else ''}"
    representative = kind != "dense" and rows == 256 and rank == (16 if kind == "described" else 0)
    groups = 2 if kind == "fp8" else 1
    stacks = "dense" if kind == "described" else kind  # what tiles are chosen by
    up = tiles.up_tile(rows, _BF16, stacks)
    yield _product(
        f"up{suffix}", up_kernel, up, rows, _WIDTH, _HIDDEN, rank,
        _KINDS[kind] | {"hidden_ptr": "*bf16:16", "h_ptr": "*bf16:16", "act_ptr": "*bf16:16"},
        stack_constants(kind, groups, 2 * _WIDTH, up.block_n, True)
        | {"TOP_K": _TOP_K, "SAVE_H": True, "SAVE_ACT": True, "SPLIT": up.split},
        representative=representative, gemm_columns=2,
    )  # fmt: skip
    if rows < _BUCKETS[-1]:  # from where on it has no larger tile
        dh = tiles.dh_tile(rows, _BF16, stacks)
        pointers = {f"{name}_ptr": "*bf16:16" for name in ("dout", "h", "dh", "act")}
        for save_act in (True, False):
            yield _product(
                f"dh{suffix}" if save_act else f"dh{suffix} alone", dh_kernel, dh, rows, _WIDTH, _HIDDEN, rank,
                _KINDS[kind] | pointers | {"route_ptr": "*fp32:16", "dot_ptr": "*fp32:16"} | ({} if save_act else {"act_ptr": None}),
                stack_constants(kind, 1, _HIDDEN, dh.block_k, True) | {"TOP_K": _TOP_K, "SAVE_ACT": save_act, "SPLIT": dh.split},
                representative=representative and save_act,
            )  # fmt: skip
    tile = tiles.grouped_tile(rows, _BF16, stacks)
    for name, k_inner, columns, inner in (("down", True, _HIDDEN, _WIDTH), ("dx", False, _HIDDEN, 2 * _WIDTH)):
        stack = stack_constants(
            kind, 1 if k_inner else groups, columns if k_inner else inner, tile.block_n if k_inner else tile.block_k, True
        )
        yield _product(
            f"{name}{suffix}", grouped_kernel, tile, rows, columns, inner, rank,
            _KINDS[kind] | {"rows_ptr": "*bf16:16", "out_ptr": "*bf16:16", "multiplier": "fp32"},
            stack | {"TOP_K": 0, "IS_FACTOR": False, "K_INNER": k_inner},
            representative=representative,
        )  # fmt: skip


def _low_rank() -> Iterator[Specimen]:
    for rank in _RANKS:
        for rows in (1, 256):
            for name, k_inner, inner in (("x a", True, _HIDDEN), ("dy b", False, 2 * _WIDTH)):
                tile = tiles.low_rank_tile(rows, _BF16, rank)
                stack = stack_constants("dense", 1, rank if k_inner else inner, tile.block_n, True)
                yield _product(
                    f"{name} r{rank}", grouped_kernel, tile, rows, rank, inner, 0,
                    _KINDS["dense"] | {"rows_ptr": "*bf16:16", "out_ptr": "*bf16:16", "multiplier": "fp32"},
                    stack | {"TOP_K": _TOP_K if k_inner else 0, "IS_FACTOR": True, "K_INNER": k_inner},
                    representative=rank == 16 and rows == 256,
                )  # fmt: skip


def _product(
    name: str,
    kernel: Any,
    tile: Tile,
    rows: int,
    columns: int,
    inner: int,
    rank: int,
    pointers: Mapping[str, str | None],
    constants: Mapping[str, Any],
    *,
    representative: bool,
    gemm_columns: int = 1,
) -> Specimen:
    """A kernel over a tile list. Arguments that are None, or strides that do not exist, are constants, as the launcher makes them."""
    arguments: dict[str, str | None] = {**_TILES, **_SIZES, **pointers, **(_LOW if rank else {})}
    types = {key: type_ for key, type_ in arguments.items() if type_ is not None}
    if constants["KIND"] == "described":
        block = (tile.block_n, tile.block_k) if constants.get("K_INNER", kernel is up_kernel) else (tile.block_k, tile.block_n)
        types["weight_ptr"] = f"tensordesc<bf16[1,{block[0]},{block[1]}]>"
    constants = {**constants, **product_constants(tile, columns, inner, rank, 1, _BF16)}
    absent = {key: None if key.endswith("_ptr") else 0 for key in kernel.arg_names if key not in types and key not in constants}
    if arguments["block_scale_ptr"] is not None:
        types["block_scale_stride_e"] = "i32:16"
        del absent["block_scale_stride_e"]
    return Specimen(
        "moe", name, kernel, types, {**constants, **absent}, tile.num_warps, tile.num_stages,
        representative=representative, block=(tile.block_m, gemm_columns * tile.block_n), rows_per_expert=rows,
    )  # fmt: skip


def _grams() -> Iterator[Specimen]:
    sides = {"left_ptr": "*bf16:16", "right_ptr": "*bf16:16", "out_ptr": "*bf16:16", "pair_ptr": "*i64:16", "ends_ptr": "*i32:16"}
    sizes = {"O": "i32:16", "I": "i32:16", "out_stride_e": "i32:16"}
    forms = [("dw up", _HIDDEN, _HIDDEN, False), ("dw down", _HIDDEN, _WIDTH, False)]
    forms += [(f"d{'a' if transposed else 'b'} r{rank}", _HIDDEN, rank, transposed) for rank in _RANKS for transposed in (True, False)]
    for name, outputs, inputs, transposed in forms:
        tile = tiles.gram_tile(_BF16, outputs, inputs)
        gathered = {"LEFT_TOP_K": _TOP_K, "RIGHT_TOP_K": 0} if name != "dw up" else {"LEFT_TOP_K": 0, "RIGHT_TOP_K": _TOP_K}
        constants = gram_constants(tile, outputs, inputs, 1, _BF16) | gathered | {"TRANSPOSED": transposed, "out_stride_l": 0}
        yield Specimen(
            "moe", name, gram_kernel, sides | sizes, constants, tile.num_warps, tile.num_stages,
            representative=name in ("dw up", "da r16"), block=(tile.block_m, tile.block_n),
        )  # fmt: skip


def _combine() -> Specimen:
    arguments = {"rows_ptr": "*bf16:16", "row_ptr": "*i64:16", "weight_ptr": "*fp32:16", "out_ptr": "*bf16:16", "D": "i32:16"}
    return Specimen("moe", "combine", combine_kernel, arguments, combine_constants(_HIDDEN, _TOP_K, True), 4, 3, is_gemm=False)
