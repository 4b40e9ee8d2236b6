"""Packing: several short documents share one row of at most ``max_length`` tokens, and never see each other.

Documents come one by one in the run's order. Each goes into the fullest open row that still holds it (best fit); when none does and
``max_open`` rows are open, the fullest one leaves. The open rows are the packer's carry-over: they are part of the loader's state,
because a packer that forgets them on resume silently repeats or drops rows.

Exercise it: ``pytest tests/ms4_train/data/test_packing.py``.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Sized)

MAX_OPEN_ROWS = 8
"""Enough for nearly full rows, few enough that documents stay close to their place in the order."""


class Packer(Generic[Item]):
    """Collects items of known length into rows.

    Args:
        max_length: tokens of a row.
        max_open: open rows; 1 packs strictly in order.
    """

    def __init__(self, max_length: int, max_open: int = MAX_OPEN_ROWS) -> None:
        self.max_length = max_length
        self.max_open = max_open
        self.open_rows: list[list[Item]] = []
        self._filled: list[int] = []

    def push(self, item: Item) -> list[list[Item]]:
        """Add one item of at most ``max_length`` tokens; returns the rows that this completes, at most two."""
        size = len(item)
        assert 0 < size <= self.max_length, f"an item of {size} tokens in rows of {self.max_length}"
        done: list[list[Item]] = []
        fitting = [index for index, filled in enumerate(self._filled) if filled + size <= self.max_length]
        if fitting:
            target = max(fitting, key=lambda index: self._filled[index])
        else:
            if len(self.open_rows) >= self.max_open:
                done.append(self._close(max(range(len(self._filled)), key=lambda index: self._filled[index])))
            self.open_rows.append([])
            self._filled.append(0)
            target = len(self.open_rows) - 1
        self.open_rows[target].append(item)
        self._filled[target] += size
        if self._filled[target] == self.max_length:
            done.append(self._close(target))
        return done

    def flush(self) -> list[list[Item]]:
        """Close all open rows, fullest first (an epoch ends)."""
        done: list[list[Item]] = []
        while self.open_rows:
            done.append(self._close(max(range(len(self._filled)), key=lambda index: self._filled[index])))
        return done

    def restore(self, open_rows: Sequence[Sequence[Item]]) -> None:
        """Take over the open rows of a saved state."""
        self.open_rows = [list(row) for row in open_rows]
        self._filled = [sum(len(item) for item in row) for row in self.open_rows]

    def _close(self, index: int) -> list[Item]:
        del self._filled[index]
        return self.open_rows.pop(index)
