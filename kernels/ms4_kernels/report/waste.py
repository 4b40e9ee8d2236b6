"""How many rows of the tiles are padding: simulated routings, cut into tiles as the launcher cuts them.

Counts of rows per expert are drawn, not measured: multinomial with T*K draws over E experts that are equally likely, or whose odds are
lognormal with sigma 1. That a token takes K different experts, which makes counts more even, is left out.
Exercise it: ``pytest tests/kernels/ms4_kernels/report/test_waste.py``.

Shape suffixes: e experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SKEWS", "TOKENS", "Waste", "draw_counts", "padded_ratio", "simulate"]

TOKENS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
SKEWS = {"uniform": 0.0, "lognormal sigma 1": 1.0}
"""Name -> sigma of the logarithm of the experts' odds."""

Chooser = Callable[[float], int]
"""Rows per expert on average -> rows of a tile."""


@dataclass(frozen=True)
class Waste:
    """Padding of one kernel's tiles at one size.

    Attributes:
        kernel: whose tiles.
        tokens: T.
        skew: a key of ``SKEWS``.
        block_rows: rows of a tile, as chosen.
        ratio: rows of all tiles divided by rows with work, mean of the draws.
        worst: the largest of the draws.
    """

    kernel: str
    tokens: int
    skew: str
    block_rows: int
    ratio: float
    worst: float


def draw_counts(tokens: int, top_k: int, num_experts: int, sigma: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Rows of each expert, [E]; they add up to ``tokens * top_k``."""
    odds_e = np.exp(sigma * generator.standard_normal(num_experts))
    return generator.multinomial(tokens * top_k, odds_e / odds_e.sum())


def padded_ratio(counts_e: NDArray[np.int64], block_rows: int) -> float:
    """Rows of the tiles, none of which spans two experts, divided by the rows of ``counts_e``."""
    return float((-(-counts_e // block_rows) * block_rows).sum() / counts_e.sum())


def simulate(
    choosers: Mapping[str, Chooser],
    *,
    tokens: Sequence[int] = TOKENS,
    num_experts: int = 128,
    top_k: int = 4,
    draws: int = 20,
    seed: int = 0,
) -> list[Waste]:
    """The padding of each kernel at each size and skew, in that order; the same for the same seed."""
    found = []
    for kernel, chooser in choosers.items():
        for count in tokens:
            block = chooser(count * top_k / num_experts)
            for skew, sigma in SKEWS.items():
                generator = np.random.default_rng(seed)
                ratios = [padded_ratio(draw_counts(count, top_k, num_experts, sigma, generator), block) for _ in range(draws)]
                found.append(Waste(kernel, count, skew, block, float(np.mean(ratios)), max(ratios)))
    return found
