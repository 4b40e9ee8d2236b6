"""What each operation of the experts computes, loads and stores, beside the least that any implementation must.

The least: each weight that is needed once, each activation once on its way in and once on its way out. Indices, tile lists and partial
sums are what these kernels add to it. Both count a byte once however often a kernel asks for it; ``issued`` counts every request, which
is what goes through the L2 cache. All is by formula; ``tests/.../report/test_traffic_counted.py`` counts the formulas after.
Exercise it: ``pytest tests/kernels/ms4_kernels/report/test_traffic.py``.

Letters: T tokens, K experts of a token, R = T*K rows, E experts, d hidden, n expert intermediate, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Operation", "Part", "Sizes", "backward", "forward", "lora_backward", "lora_forward", "weight_gradients"]

_FP32 = 4
_INT64 = 8
_TILE_ENTRY = 3 * 4
"""Bytes of a tile in the tile list: segment, first row, end."""


@dataclass(frozen=True)
class Sizes:
    """What the work is counted for; the defaults are the release's.

    Attributes:
        tokens: T.
        hidden: d.
        width: n.
        experts: E, all of which get rows.
        top_k: K.
        rank: r, 0 without LoRA.
        element: bytes of an activation, and of a weight that is not quantised.
        weight: bytes of a frozen base weight: 2 bf16, 1 FP8, 0.5625 NVFP4 with the scales of its blocks.
        block_rows: rows of a tile, for the tile list and for ``Operation.issued``.
        block_columns: columns of a tile, likewise and for the partial sums of dS.
    """

    tokens: int
    hidden: int = 4096
    width: int = 2048
    experts: int = 128
    top_k: int = 4
    rank: int = 0
    element: float = 2
    weight: float = 2
    block_rows: int = 128
    block_columns: int = 128

    @property
    def rows(self) -> int:
        """R."""
        return self.tokens * self.top_k

    @property
    def tiles(self) -> int:
        """Length of the tile list, surplus entries included."""
        return self.rows // self.block_rows + min(self.experts, self.rows)


@dataclass(frozen=True)
class Operation:
    """One launch.

    Attributes:
        name: of the operation.
        flops: floating-point operations of its products; a multiplication and an addition are two.
        loads: what -> bytes that any implementation must load.
        stores: what -> bytes that any implementation must store.
        extra_loads: what -> bytes that these kernels load besides.
        extra_stores: what -> bytes that these kernels store besides.
        product: (columns, inner) of the product, whose rows are R; () if there is none or its inner axis is R.
    """

    name: str
    flops: float
    loads: Mapping[str, float]
    stores: Mapping[str, float]
    extra_loads: Mapping[str, float] = field(default_factory=dict)
    extra_stores: Mapping[str, float] = field(default_factory=dict)
    product: tuple[int, ...] = ()

    @property
    def minimum(self) -> float:
        """Bytes that must move."""
        return sum(self.loads.values()) + sum(self.stores.values())

    @property
    def moved(self) -> float:
        """Bytes that these kernels load and store, each counted once."""
        return self.minimum + sum(self.extra_loads.values()) + sum(self.extra_stores.values())

    def issued(self, sizes: Sizes) -> float:
        """Bytes loaded through the L2 cache for the product's operands: each tile of the output asks for its rows and its columns.

        0 for an operation whose product does not run over rows.
        """
        if not self.product:
            return 0.0
        columns, inner = self.product
        column_tiles = -(-columns // sizes.block_columns)
        return sizes.tiles * column_tiles * inner * (sizes.block_rows * sizes.element + sizes.block_columns * sizes.weight)


Part = Callable[[Sizes], list[Operation]]
"""The launches of a part of the work, in their order."""


def forward(s: Sizes, *, saves_h: bool = True) -> list[Operation]:
    """Up-projection with SwiGLU, down-projection, combine; without LoRA."""
    tokens = s.element * s.tokens * s.hidden
    rows_n, rows_d = s.element * s.rows * s.width, s.element * s.rows * s.hidden
    weight = s.weight * s.experts * s.hidden * s.width
    product = 2 * s.rows * s.hidden * s.width
    tiles = {"tiles": _TILE_ENTRY * s.tiles}
    gather = tiles | {"row's token": _INT64 * s.rows}
    stores = {"H": 2 * rows_n, "A": rows_n} if saves_h else {"A": rows_n}
    back = {"token's rows": _INT64 * s.rows}
    return [
        Operation("up", 2 * product, {"X": tokens, "W1": 2 * weight}, stores, gather, product=(2 * s.width, s.hidden)),
        Operation("down", product, {"A": rows_n, "W2": weight}, {"Y": rows_d}, tiles, product=(s.hidden, s.width)),
        Operation("combine", 0, {"Y": rows_d}, {"out": tokens}, back | {"routing weights": _FP32 * s.rows}),
    ]


def backward(s: Sizes, *, saves_a: bool = False) -> list[Operation]:
    """Gradients of hidden states and routing weights.

    Args:
        s: the sizes.
        saves_a: whether A', which gradients of the down-projection or of its LoRA need, is written too.
    """
    tokens = s.element * s.tokens * s.hidden
    rows_n, rows_d = s.element * s.rows * s.width, s.element * s.rows * s.hidden
    weight = s.weight * s.experts * s.hidden * s.width
    product = 2 * s.rows * s.hidden * s.width
    tiles = {"tiles": _TILE_ENTRY * s.tiles}
    partial = _FP32 * s.rows * -(-s.width // s.block_columns)
    gather = tiles | {"row's pair": _INT64 * s.rows, "routing weights": _FP32 * s.rows}
    stores = {"dH": 2 * rows_n, "A'": rows_n} if saves_a else {"dH": 2 * rows_n}
    back = {"token's rows": _INT64 * s.rows}
    return [
        Operation(
            "dh",
            product,
            {"dO": tokens, "W2": weight, "H": 2 * rows_n},
            stores,
            gather,
            {"dS of a tile": partial},
            (s.width, s.hidden),
        ),
        Operation("ds", 0, {}, {"dS": _FP32 * s.rows}, {"dS of a tile": partial}),
        Operation("dx", 2 * product, {"dH": 2 * rows_n, "W1": 2 * weight}, {"dX of rows": rows_d}, tiles, product=(s.hidden, 2 * s.width)),
        Operation("combine dx", 0, {"dX of rows": rows_d}, {"dX": tokens}, back),
    ]


def weight_gradients(s: Sizes) -> list[Operation]:
    """Gradients of the two stacks, for full training only."""
    tokens, rows_n = s.element * s.tokens * s.hidden, s.element * s.rows * s.width
    weight = s.element * s.experts * s.hidden * s.width
    product = 2 * s.rows * s.hidden * s.width
    gather = {"row's token": _INT64 * s.rows, "ends": 4 * s.experts}
    return [
        Operation("dW1", 2 * product, {"X": tokens, "dH": 2 * rows_n}, {"dW1": 2 * weight}, gather),
        Operation("dW2", product, {"dO": tokens, "A'": rows_n}, {"dW2": weight}, gather),
    ]


def lora_forward(s: Sizes) -> list[Operation]:
    """The low-rank products before the two projections, and what the tails in their epilogues add."""
    tokens = s.element * s.tokens * s.hidden
    rows_n, low = s.element * s.rows * s.width, s.element * s.rows * s.rank
    side_d, side_n = s.element * s.experts * s.rank * s.hidden, s.element * s.experts * s.rank * s.width
    d_product, n_product = 2 * s.rows * s.rank * s.hidden, 2 * s.rows * s.rank * s.width
    tiles = {"tiles": _TILE_ENTRY * s.tiles}
    gather = tiles | {"row's token": _INT64 * s.rows}
    return [
        Operation("X A1", d_product, {"X": tokens, "A1": side_d}, {"X A1": low}, gather, product=(s.rank, s.hidden)),
        Operation("tail of up", 2 * n_product, {"X A1": low, "B1": 2 * side_n}, {}),
        Operation("A A2", n_product, {"A": rows_n, "A2": side_n}, {"A A2": low}, tiles, product=(s.rank, s.width)),
        Operation("tail of down", d_product, {"A A2": low, "B2": side_d}, {}),
    ]


def lora_backward(s: Sizes) -> list[Operation]:
    """The low-rank products and tails of the backward pass, and the gradients of both pairs as products over rows.

    Two low-rank products of the forward pass are made again instead of saved: that of X, and that of A with the routing weights in it.
    """
    tokens = s.element * s.tokens * s.hidden
    rows_n, low = s.element * s.rows * s.width, s.element * s.rows * s.rank
    side_d, side_n = s.element * s.experts * s.rank * s.hidden, s.element * s.experts * s.rank * s.width
    d_product, n_product = 2 * s.rows * s.rank * s.hidden, 2 * s.rows * s.rank * s.width
    tiles = {"tiles": _TILE_ENTRY * s.tiles}
    token = {"row's token": _INT64 * s.rows}
    ends = {"ends": 4 * s.experts}
    return [
        Operation("X A1 again", d_product, {"X": tokens, "A1": side_d}, {"X A1": low}, tiles | token, product=(s.rank, s.hidden)),
        Operation("dO B2", d_product, {"dO": tokens, "B2": side_d}, {"dO B2": low}, tiles | token, product=(s.rank, s.hidden)),
        Operation("tail of dh", n_product, {"dO B2": low, "A2": side_n}, {}),
        Operation("A' A2", n_product, {"A'": rows_n, "A2": side_n}, {"A' A2": low}, tiles, product=(s.rank, s.width)),
        Operation("dA2", n_product, {"dO B2": low, "A'": rows_n}, {"dA2": side_n}, ends),
        Operation("dB2", d_product, {"dO": tokens, "A' A2": low}, {"dB2": side_d}, ends | token),
        Operation("dH B1", 2 * n_product, {"dH": 2 * rows_n, "B1": 2 * side_n}, {"dH B1": low}, tiles, product=(s.rank, 2 * s.width)),
        Operation("dA1", d_product, {"dH B1": low, "X": tokens}, {"dA1": side_d}, ends | token),
        Operation("dB1", 2 * n_product, {"dH": 2 * rows_n, "X A1": low}, {"dB1": 2 * side_n}, ends),
        Operation("tail of dx", d_product, {"dH B1": low, "A1": side_d}, {}),
    ]
