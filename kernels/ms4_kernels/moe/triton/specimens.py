"""The compiled forms in which the kernels are shipped: bf16 at the release's sizes, in every tile, with dense, FP8 and NVFP4 stacks.

Also, in the tiles of many rows per expert, several adapters, uneven sizes and another rank, and fp32 in all of its tiles.

Constants come from the functions that the launcher uses.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/triton/test_specimens.py``, and ``make kernels-report``, which compiles them.

Not covered: forms that differ in little (other top-k or ranks, fp16), and fp32 products in TF32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
_SLOTS = 3
"""Of two adapters."""
_KINDS: dict[str, dict[str, str | None]] = {
    "dense": {"weight_ptr": "*bf16:16", "scale_ptr": None, "block_scale_ptr": None},
    "described": {"weight_ptr": "tensordesc", "scale_ptr": None, "block_scale_ptr": None},
    "fp8": {"weight_ptr": "*u8:16", "scale_ptr": "*fp32:16", "block_scale_ptr": None},
    "nvfp4": {"weight_ptr": "*u8:16", "scale_ptr": "*fp32:16", "block_scale_ptr": "*u8:16"},
}
_TILES = {"pair_ptr": "*i64:16", "segment_ptr": "*i32:16", "start_ptr": "*i32:16", "stop_ptr": "*i32:16", "num_m": "i32"}
_SIZES = {"N": "i32:16", "K": "i32:16", "weight_stride_e": "i32:16"}
_LOW = {"low_ptr": "*bf16:16", "factor_ptr": "*bf16:16", "factor_stride_e": "i32:16"}


@dataclass(frozen=True)
class _Form:
    """What the products of one set have in common: ``rows`` per expert, a LoRA rank or 0, and SLOTS, one more than the adapters or 1."""

    kind: str
    rows: int
    rank: int
    dtype: torch.dtype = _BF16
    slots: int = 1
    hidden: int = _HIDDEN
    width: int = _WIDTH

    def named(self, kernel: str, rest: str = "") -> str:
        """Forms in fp32 begin otherwise than by a kernel's name, for they are not held to tall tiles."""
        parts = ["fp32"] if self.dtype == torch.float32 else []
        parts += [kernel] + [self.kind] * (self.kind != "dense") + [f"r{self.rank}"] * (self.rank > 0)
        parts += ["adapters"] * (self.slots > 1) + ["uneven"] * (self.hidden != _HIDDEN) + [rest] * bool(rest)
        return " ".join(parts)


def specimens() -> list[Specimen]:
    """Every shipped form. Those of `make test` are of 256 rows per expert: dense as Hopper gets it with LoRA, FP8 and NVFP4 without.

    One in fp32 is among them, the up-projection at rank 128, which has most to hold in registers.
    """
    low_rank, grams = _low_rank(_BF16, 1), _grams(_BF16, 1)
    return [*_products(), *low_rank, *grams, _combine(_BF16), *_adapters(), *_uneven(), *_fp32()]


def _products() -> Iterator[Specimen]:
    for kind in _KINDS:
        for rows in _BUCKETS:
            for rank in (0, *_RANKS):
                if kind in ("fp8", "nvfp4") and (rank not in (0, 16) or rows == _BUCKETS[-1]):
                    continue  # the tail comes after the loop, where the kind no longer matters; the widest tiles are for dense stacks
                representative = kind != "dense" and rows == 256 and rank == (16 if kind == "described" else 0)
                yield from _three_products(_Form(kind, rows, rank), representative=representative)
    for kind in ("dense", "described"):
        for rows in _BUCKETS[-2:]:
            yield from _three_products(_Form(kind, rows, 64))


def _adapters() -> Iterator[Specimen]:
    for kind, rank in (("dense", 16), ("described", 16), ("described", 128)):
        for rows in _BUCKETS[-2:]:
            yield from _three_products(_Form(kind, rows, rank, slots=_SLOTS))
    yield from _low_rank(_BF16, _SLOTS)
    yield from _grams(_BF16, _SLOTS)


def _uneven() -> Iterator[Specimen]:
    for kind in _KINDS:
        yield from _three_products(_Form(kind, 256, 16, hidden=_HIDDEN + 16, width=_WIDTH + 16))


def _fp32() -> Iterator[Specimen]:
    for kind in ("dense", "fp8", "nvfp4"):
        for rows in (1, 256):
            for rank in (0, 16, 128):
                for specimen in _three_products(_Form(kind, rows, rank, torch.float32)):
                    yield replace(specimen, representative=(specimen.name, rows) == ("fp32 up r128", 256))
    for rows in (1, 256):
        yield from _three_products(_Form("dense", rows, 128, torch.float32, slots=_SLOTS))
        yield from _three_products(_Form("dense", rows, 128, torch.float32, hidden=_HIDDEN + 16, width=_WIDTH + 16))
    yield from _low_rank(torch.float32, 1)
    yield from _grams(torch.float32, 1)
    yield _combine(torch.float32)


def _three_products(form: _Form, *, representative: bool = False) -> Iterator[Specimen]:
    kind, rows, dtype, hidden, width = form.kind, form.rows, form.dtype, form.hidden, form.width
    groups = 2 if kind == "fp8" else 1
    stacks = "dense" if kind == "described" else kind  # what tiles are chosen by
    up = tiles.up_tile(rows, dtype, stacks)
    for save_h in (True, False) if form.rank == 16 and form.slots == 1 and hidden == _HIDDEN else (True,):
        yield _product(
            form.named("up", "" if save_h else "no H"), up_kernel, up, form, width, hidden,
            {"hidden_ptr": "*bf16:16", "h_ptr": "*bf16:16" if save_h else None, "act_ptr": "*bf16:16"},
            stack_constants(kind, groups, 2 * width, up.block_n, True)
            | {"TOP_K": _TOP_K, "SAVE_H": save_h, "SAVE_ACT": True, "SPLIT": up.split},
            representative=representative and save_h, gemm_columns=2,
        )  # fmt: skip
    if rows < _BUCKETS[-1]:  # from where on it has no larger tile
        dh = tiles.dh_tile(rows, dtype, stacks)
        pointers = {f"{name}_ptr": "*bf16:16" for name in ("dout", "h", "dh", "act")}
        for save_act in (True, False):
            yield _product(
                form.named("dh", "" if save_act else "alone"), dh_kernel, dh, form, width, hidden,
                pointers | {"route_ptr": "*fp32:16", "dot_ptr": "*fp32:16"} | ({} if save_act else {"act_ptr": None}),
                stack_constants(kind, 1, hidden, dh.block_k, True) | {"TOP_K": _TOP_K, "SAVE_ACT": save_act, "SPLIT": dh.split},
                representative=representative and save_act,
            )  # fmt: skip
    tile = tiles.grouped_tile(rows, dtype, stacks)
    for name, k_inner, columns, inner in (("down", True, hidden, width), ("dx", False, hidden, 2 * width)):
        stack = stack_constants(
            kind, 1 if k_inner else groups, columns if k_inner else inner, tile.block_n if k_inner else tile.block_k, True
        )
        yield _product(
            form.named(name), grouped_kernel, tile, form, columns, inner,
            {"rows_ptr": "*bf16:16", "out_ptr": "*bf16:16", "multiplier": "fp32"},
            stack | {"TOP_K": 0, "IS_FACTOR": False, "K_INNER": k_inner},
            representative=representative,
        )  # fmt: skip


def _low_rank(dtype: torch.dtype, slots: int) -> Iterator[Specimen]:
    for rank in _RANKS:
        for rows in (1, 256) if dtype == _BF16 else (256,):
            for name, k_inner, inner in (("x a", True, _HIDDEN), ("dy b", False, 2 * _WIDTH)):
                tile = tiles.low_rank_tile(rows, dtype, rank)
                stack = stack_constants("dense", 1, rank if k_inner else inner, tile.block_n, True)
                form = _Form("dense", rows, 0, dtype, slots)
                yield _product(
                    form.named(name, f"r{rank}"), grouped_kernel, tile, form, rank, inner,
                    {"rows_ptr": "*bf16:16", "out_ptr": "*bf16:16", "multiplier": "fp32"}
                    | ({"weight_stride_l": "i32:16"} if slots > 1 else {}),
                    stack | {"TOP_K": _TOP_K if k_inner else 0, "IS_FACTOR": True, "K_INNER": k_inner},
                    representative=rank == 16 and rows == 256 and slots == 1 and dtype == _BF16,
                )  # fmt: skip


def _product(
    name: str,
    kernel: Any,
    tile: Tile,
    form: _Form,
    columns: int,
    inner: int,
    pointers: Mapping[str, str | None],
    constants: Mapping[str, Any],
    *,
    representative: bool,
    gemm_columns: int = 1,
) -> Specimen:
    """A kernel over a tile list. Arguments that are None, or strides that do not exist, are constants, as the launcher makes them."""
    arguments: dict[str, str | None] = {**_TILES, **_SIZES, **_KINDS[form.kind], **pointers, **(_LOW if form.rank else {})}
    if form.rank and form.slots > 1:
        arguments["factor_stride_l"] = "i32:16"
    types = _typed({key: type_ for key, type_ in arguments.items() if type_ is not None}, form.dtype)
    if form.kind == "described":
        block = (tile.block_n, tile.block_k) if constants.get("K_INNER", kernel is up_kernel) else (tile.block_k, tile.block_n)
        types["weight_ptr"] = f"tensordesc<bf16[1,{block[0]},{block[1]}]>"
    constants = {**constants, **product_constants(tile, columns, inner, form.rank, form.slots, form.dtype)}
    absent = {key: None if key.endswith("_ptr") else 0 for key in kernel.arg_names if key not in types and key not in constants}
    if arguments["block_scale_ptr"] is not None:
        types["block_scale_stride_e"] = "i32:16"
        del absent["block_scale_stride_e"]
    # Exact fp32 products ("ieee") are made by the ordinary units: there is no tensor core instruction for them.
    return Specimen(
        "moe", name, kernel, types, {**constants, **absent}, tile.num_warps, tile.num_stages, is_gemm=form.dtype != torch.float32,
        representative=representative, block=(tile.block_m, gemm_columns * tile.block_n), rows_per_expert=form.rows,
    )  # fmt: skip


def _typed(arguments: Mapping[str, str], dtype: torch.dtype) -> dict[str, str]:
    """The same arguments with rows and dense weights of ``dtype`` in the place of bf16."""
    return {name: type_.replace("bf16", "fp32" if dtype == torch.float32 else "bf16") for name, type_ in arguments.items()}


def _grams(dtype: torch.dtype, slots: int) -> Iterator[Specimen]:
    sides = {"left_ptr": "*bf16:16", "right_ptr": "*bf16:16", "out_ptr": "*bf16:16", "pair_ptr": "*i64:16", "ends_ptr": "*i32:16"}
    sizes = {"O": "i32:16", "I": "i32:16", "out_stride_e": "i32:16"} | ({"out_stride_l": "i32:16"} if slots > 1 else {})
    forms = [("dw up", _HIDDEN, _HIDDEN, False), ("dw down", _HIDDEN, _WIDTH, False)] if slots == 1 else []  # adapters have factors only
    forms += [(f"d{'a' if transposed else 'b'} r{rank}", _HIDDEN, rank, transposed) for rank in _RANKS for transposed in (True, False)]
    for name, outputs, inputs, transposed in forms:
        tile = tiles.gram_tile(dtype, outputs, inputs)
        gathered = {"LEFT_TOP_K": _TOP_K, "RIGHT_TOP_K": 0} if name != "dw up" else {"LEFT_TOP_K": 0, "RIGHT_TOP_K": _TOP_K}
        constants = gram_constants(tile, outputs, inputs, slots, dtype) | gathered | {"TRANSPOSED": transposed}
        constants |= {"out_stride_l": 0} if slots == 1 else {}
        yield Specimen(
            "moe", _Form("dense", 0, 0, dtype, slots).named(name), gram_kernel, _typed(sides | sizes, dtype), constants,
            tile.num_warps, tile.num_stages, is_gemm=dtype != torch.float32, block=(tile.block_m, tile.block_n),
            representative=name in ("dw up", "da r16") and slots == 1 and dtype == _BF16,
        )  # fmt: skip


def _combine(dtype: torch.dtype) -> Specimen:
    arguments = {"rows_ptr": "*bf16:16", "row_ptr": "*i64:16", "weight_ptr": "*fp32:16", "out_ptr": "*bf16:16", "D": "i32:16"}
    constants = combine_constants(_HIDDEN, _TOP_K, True)
    return Specimen(
        "moe", _Form("dense", 0, 0, dtype).named("combine"), combine_kernel, _typed(arguments, dtype), constants, 4, 3,
        is_gemm=False, representative=dtype == _BF16,
    )  # fmt: skip
