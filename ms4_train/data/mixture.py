"""The order in which rows of several sources are drawn.

The rule for sources whose rows are all in memory: **an epoch draws round(weight x rows) rows from every source.** Weight 1 is one pass
over the source, 2 is every row twice, 0.5 is half of the rows, another half in the next epoch. So sources with equal weights are simply
joined, and a larger source is seen more often than a smaller one. ``describe_mixture`` says it in numbers before a run.

A streaming source has no known size. Where one streams, all are drawn as streams: weight is then the rate at which a source is drawn
relative to the others, and a source that ends starts over.

Orders come from a hash of (seed, epoch, row), not from a library's generator, so that they stay the same on every version and machine.
Exercise it: ``pytest tests/ms4_train/data/test_mixture.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def hash_keys(ids: NDArray[np.int64], *salt: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each id and the salt (the splitmix64 finaliser; Steele, Lea and Flood, 2014)."""
    base = np.uint64(0)
    for value in salt:
        base = _mix(np.array([(int(base) + value + _GOLDEN) & _MASK], dtype=np.uint64))[0]
    with np.errstate(over="ignore"):
        return _mix(ids.astype(np.uint64) * np.uint64(_GOLDEN) + base)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffled(ids: NDArray[np.int64], *salt: int) -> NDArray[np.int64]:
    """``ids`` in an order that ``salt`` decides; the same on every machine."""
    return ids[np.argsort(hash_keys(np.arange(len(ids), dtype=np.int64), *salt), kind="stable")]


def rows_drawn(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Rows that one epoch draws from each source; at least one from a source that has any."""
    return [max(1, round(weight * size)) if size else 0 for size, weight in zip(sizes, weights, strict=True)]


def epoch_order(sizes: Sequence[int], weights: Sequence[float], *, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """Global row ids in the order in which epoch ``epoch`` draws them.

    The global id of a source's row is its index plus the sizes of the sources before it. Without ``shuffle``, sources come one after
    the other, each in its own order.
    """
    parts: list[NDArray[np.int64]] = []
    first = 0
    for number, (size, count) in enumerate(zip(sizes, rows_drawn(sizes, weights), strict=True)):
        passes, rest = divmod(count, size) if size else (0, 0)
        ids = np.arange(first, first + size, dtype=np.int64)
        parts += [ids] * passes
        if rest:
            # A window that moves over one fixed permutation: over the epochs, every row gets its turn.
            permutation = shuffled(ids, seed, number, 1)
            parts.append(np.sort(permutation[(np.arange(rest) + epoch * rest) % size]))
        first += size
    drawn = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    return shuffled(drawn, seed, epoch, 2) if shuffle else drawn


def next_stream(drawn: Sequence[int], weights: Sequence[float]) -> int:
    """The source to draw from next, so that shares stay as close to the weights as whole rows allow; ties to the first."""
    return min(range(len(drawn)), key=lambda index: ((drawn[index] + 1) / weights[index], index))


def describe_mixture(paths: Sequence[str], sizes: Sequence[int], weights: Sequence[float]) -> list[str]:
    """One line per source: rows, weight, and what an epoch makes of them."""
    counts = rows_drawn(sizes, weights)
    total = sum(counts) or 1
    return [
        f"{path}: {size:,} rows x weight {weight:g} = {count:,} rows per epoch ({count / total:.1%} of the mixture)"
        for path, size, weight, count in zip(paths, sizes, weights, counts, strict=True)
    ]
