"""Which adapter each row of a forward pass is for, where not all rows are for the same: set around the pass, read by the modules in it.

It lies here, below adapters, because attention has to know: what it computes once per pass, it computes once per adapter. Held by the
thread that set it, so that another one may train meanwhile.
Exercise it: ``pytest tests/ms4_train/model/test_row_segments.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class RowSegment(NamedTuple):
    """Rows ``start .. stop - 1`` of the token axis, for the adapter of this name; None: for the model as it stands."""

    adapter: str | None
    start: int
    stop: int


_SEGMENTS: ContextVar[tuple[RowSegment, ...] | None] = ContextVar("row_segments", default=None)


@contextmanager
def row_segments(segments: Sequence[RowSegment]) -> Iterator[None]:
    """Set the segments of the passes inside, which cover all rows in order; contexts nest.

    Segments of one adapter only, or of none, hold for any number of rows: for images too, whose rows are patches.
    """
    token = _SEGMENTS.set(tuple(segments))
    try:
        yield
    finally:
        _SEGMENTS.reset(token)


def current_segments() -> tuple[RowSegment, ...] | None:
    """The segments that hold here; None outside of :func:`row_segments`."""
    return _SEGMENTS.get()


@contextmanager
def segments_of(start: int, stop: int) -> Iterator[None]:
    """Inside, rows ``start .. stop - 1`` are all there are: for a module that is given a part of the rows."""
    segments = current_segments()
    if segments is None:
        yield
        return
    cut = [RowSegment(name, max(first, start) - start, min(last, stop) - start) for name, first, last in segments]
    with row_segments([segment for segment in cut if segment.start < segment.stop]):
        yield
