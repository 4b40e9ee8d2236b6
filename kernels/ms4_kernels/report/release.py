"""The report's sizes: what the experts of the release move and pad, with the tiles that the launcher picks.

Exercise it: ``pytest tests/kernels/ms4_kernels/report/test_release.py``.

Letters: T tokens, K experts of a token, R = T*K rows, E experts, d hidden, n expert intermediate, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from ms4_kernels.moe.triton.tiles import Tile, dh_tile, grouped_tile, low_rank_tile, up_tile
from ms4_kernels.report import traffic
from ms4_kernels.report.waste import Chooser

__all__ = ["GEMMS", "RANK", "TOKENS", "TrafficRow", "choosers", "moved_and_minimum", "traffic_rows"]

TOKENS = (512, 2048, 8192, 32768)
RANK = 16
GEMMS = ("up", "down", "dh", "dx")
"""The specimens whose products carry the work; their names begin so."""

_DTYPE = torch.bfloat16
_FP8_BYTES = 1.0
_NVFP4_BYTES = 0.5 + 1 / 16
"""Half a byte of code, and a byte of scale for 16 of them."""


@dataclass(frozen=True)
class TrafficRow:
    """One operation at one size.

    Attributes:
        tokens: T.
        weights: kind of the frozen stacks.
        operation: its name.
        flops: of its products.
        minimum: bytes that must move.
        moved: bytes that these kernels move, each counted once a launch.
        issued: bytes loaded through the L2 cache for the operands of its product; 0 where that is not counted.
    """

    tokens: int
    weights: str
    operation: str
    flops: float
    minimum: float
    moved: float
    issued: float


def choosers() -> Mapping[str, Chooser]:
    """Kernel -> rows of the launcher's tile in bf16, by rows per expert."""
    return {
        "up": lambda rows: up_tile(rows, _DTYPE).block_m,
        "grouped": lambda rows: grouped_tile(rows, _DTYPE).block_m,
        "dh": lambda rows: dh_tile(rows, _DTYPE).block_m,
        "low rank": lambda rows: low_rank_tile(rows, _DTYPE, RANK).block_m,
    }


def traffic_rows() -> list[TrafficRow]:
    """Forward, backward of a frozen base, LoRA, and for bf16 stacks the weight gradients, at each of ``TOKENS``."""
    rows = []
    for tokens in TOKENS:
        for weights, size in (("bf16", 2.0), ("fp8", _FP8_BYTES), ("nvfp4", _NVFP4_BYTES)):
            sizes = traffic.Sizes(tokens, weight=size, rank=RANK)
            parts = [traffic.forward, traffic.backward]
            if weights == "bf16":
                # A', which the gradients of LoRA and of the stacks need, is written in this kind's rows of the backward pass.
                parts = [traffic.forward, _backward_with_a, traffic.lora_forward, traffic.lora_backward, traffic.weight_gradients]
            for part in parts:
                rows += [_row(sizes, weights, part, number) for number in range(len(part(sizes)))]
    return rows


def moved_and_minimum(rows: Iterable[TrafficRow]) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes moved and bytes that must move, by size and operation, for the gate. The sum of dS over tiles counts with ``dh``."""
    moved: dict[str, float] = {}
    minimum: dict[str, float] = {}
    for row in rows:
        name = f"{row.operation if row.operation != 'ds' else 'dh'}, {row.tokens} tokens, {row.weights}"
        moved[name] = moved.get(name, 0) + row.moved
        minimum[name] = minimum.get(name, 0) + row.minimum
    return moved, minimum


def _backward_with_a(sizes: traffic.Sizes) -> list[traffic.Operation]:
    return traffic.backward(sizes, saves_a=True)


def _row(sizes: traffic.Sizes, weights: str, part: traffic.Part, number: int) -> TrafficRow:
    """The operation with the tile of its kernel."""
    name = part(sizes)[number].name
    tile = _tile(name, sizes.rows / sizes.experts, sizes.rank)
    # The up kernel computes as many columns of the gate as of the up projection.
    columns = 2 * tile.block_n if name == "up" else tile.block_n
    weight = sizes.element if part in (traffic.lora_forward, traffic.lora_backward) else sizes.weight
    tiled = replace(sizes, block_rows=tile.block_m, block_columns=columns)
    operation = part(tiled)[number]
    issued = operation.issued(replace(tiled, weight=weight))
    return TrafficRow(sizes.tokens, weights, name, operation.flops, operation.minimum, operation.moved, issued)


def _tile(operation: str, rows_per_expert: float, rank: int) -> Tile:
    if operation == "up":
        return up_tile(rows_per_expert, _DTYPE)
    if operation in ("X A1", "X A1 again", "A A2", "A' A2", "dO B2", "dH B1"):
        return low_rank_tile(rows_per_expert, _DTYPE, rank)
    return (dh_tile if operation in ("dh", "ds") else grouped_tile)(rows_per_expert, _DTYPE)
