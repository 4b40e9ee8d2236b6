"""Which adapters act on which rows of a module's input: its active ones, or by row, where ``model.row_segments`` says so.

A row for a named adapter sees the base with that adapter alone; a row for none sees the model as it stands.
Exercise it: ``pytest tests/ms4_train/adapters/test_row_parts.py``.

Shape suffixes: t rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ms4_train.model.row_segments import current_segments

NamesOf = Callable[[str | None], tuple[str, ...]]
"""From the adapter of a row, or None, to those of a module that act on the row."""


class RowPart(NamedTuple):
    """Rows ``start .. stop - 1``, on which the same adapters act."""

    names: tuple[str, ...]
    start: int
    stop: int


def row_parts(names_of: NamesOf, rows: int) -> list[RowPart]:
    """The parts of a module's input, in order, neighbours with the same adapters joined; at least one.

    Args:
        names_of: of the module.
        rows: of its input. Where all segments have the same adapters they hold for any number of rows.

    Raises:
        ValueError: segments of several adapters that are not those of this input.
    """
    segments = current_segments()
    if not segments:
        return [RowPart(names_of(None), 0, rows)]
    parts: list[RowPart] = []
    for adapter, start, stop in segments:
        names = names_of(adapter)
        if parts and parts[-1].names == names:
            parts[-1] = RowPart(names, parts[-1].start, stop)
        else:
            parts.append(RowPart(names, start, stop))
    if len(parts) == 1:
        return [RowPart(parts[0].names, 0, rows)]
    if parts[0].start != 0 or parts[-1].stop != rows or any(a.stop != b.start for a, b in pairwise(parts)):
        raise ValueError(f"segments {[tuple(segment) for segment in segments]} are not those of {rows} rows")
    return parts


@lru_cache(maxsize=8)  # all layers of a pass ask for the same
def index_rows(indices: tuple[int, ...], parts: tuple[RowPart, ...], device: torch.device) -> Tensor:
    """The index of each part, repeated for its rows, int64 [t]; not to be written to."""
    with torch.inference_mode(False):  # a tensor of inference mode could not be used outside of it
        lengths = torch.tensor([part.stop - part.start for part in parts])
        return torch.tensor(indices).repeat_interleave(lengths).to(device)
