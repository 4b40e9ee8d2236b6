"""Two checkpoints of any layouts, piece by piece: what is identical, how far the rest differs, what only one of them has.

Memory is bounded by a chunk of rows for each thread, whatever the size of the checkpoints.
Exercise it: ``ms4 weights diff A B`` and ``pytest tests/ms4_train/weights/compare/test_diff.py``.

Not covered: what the differences do to the model's answers (``verify``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ms4_train.weights.compare.config_diff import ConfigDifference, compare_configs
from ms4_train.weights.compare.piece_error import PieceError, compare_piece, compare_rounded
from ms4_train.weights.layouts.pieces import Piece
from ms4_train.weights.reading.checkpoint import Checkpoint

Progress = Callable[[int, int], None]
"""Called with (values compared, values in all)."""

MAX_THREADS = 8


@dataclass(frozen=True)
class Reshaped:
    """A piece that has another shape in B."""

    name: str
    a: tuple[int, ...]
    b: tuple[int, ...]


@dataclass(frozen=True)
class CheckpointDifference:
    """The comparison of two checkpoints.

    Attributes:
        pieces: those that both have in one shape, worst first.
        only_a: names of pieces that B lacks.
        only_b: names of pieces that A lacks.
        reshaped: pieces of different shapes.
        config: keys that differ, those of the arithmetic first.
    """

    pieces: tuple[PieceError, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]
    config: tuple[ConfigDifference, ...]

    @property
    def num_identical(self) -> int:
        """Pieces of which nothing differs."""
        return sum(piece.is_unchanged for piece in self.pieces)

    @property
    def worst(self) -> PieceError | None:
        """The piece of the largest relative error; None where no value differs."""
        return self.pieces[0] if self.pieces and not self.pieces[0].is_identical else None

    def is_within(self, tolerance: float) -> bool:
        """Whether both have the same pieces and arithmetic, and no piece's relative error is above the tolerance; 0 asks for identity."""
        if self.only_a or self.only_b or self.reshaped or any(difference.is_computational for difference in self.config):
            return False
        if tolerance == 0:
            return self.num_identical == len(self.pieces)
        return all(piece.relative_error <= tolerance for piece in self.pieces)


def diff(
    a: Checkpoint, b: Checkpoint, *, rounded: bool = False, threads: int | None = None, progress: Progress | None = None
) -> CheckpointDifference:
    """Compare every piece of two checkpoints.

    Args:
        a: what errors are relative to.
        b: the other one.
        rounded: compare in ``common_dtype``, as a conversion rounds; else exactly, quantised weights in fp32.
        threads: pieces compared at once; default: one per core, eight at most.
        progress: told how far the comparison is.

    Raises:
        WeightsError: a file cannot be read, or holds a code that is NaN (names file and tensor).
    """
    mine, theirs = a.pieces(), b.pieces()
    both = [piece for name, piece in mine.items() if name in theirs and theirs[name].shape == piece.shape]
    found = compare_pieces(a, b, both, threads=threads, progress=progress, compare=compare_rounded if rounded else compare_piece)
    return CheckpointDifference(
        pieces=tuple(sorted(found, key=lambda piece: (-piece.relative_error, piece.is_unchanged))),
        only_a=tuple(name for name in mine if name not in theirs),
        only_b=tuple(name for name in theirs if name not in mine),
        reshaped=tuple(
            Reshaped(name, piece.shape, theirs[name].shape)
            for name, piece in mine.items()
            if name in theirs and theirs[name].shape != piece.shape
        ),
        config=tuple(compare_configs(a.config, b.config)),
    )


def compare_pieces(
    a: Checkpoint,
    b: Checkpoint,
    wanted: list[Piece],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    compare: Callable[[Checkpoint, Checkpoint, Piece], PieceError] = compare_piece,
) -> list[PieceError]:
    """Compare pieces side by side, read in the order of A's disk; results in the order of ``wanted``."""
    ordered = sorted(wanted, key=lambda piece: _disk_order(a, piece))
    done, total = 0, sum(piece.numel for piece in ordered)
    found: dict[str, PieceError] = {}
    with ThreadPoolExecutor(threads or min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for piece, error in zip(ordered, pool.map(lambda piece: compare(a, b, piece), ordered), strict=True):
                found[piece.name] = error
                done += piece.numel
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [found[piece.name] for piece in wanted]


def _disk_order(checkpoint: Checkpoint, piece: Piece) -> tuple[Path, int, int]:
    place = checkpoint.place(piece)
    stored = checkpoint.stored[place.values]
    return stored.file, stored.info.start, place.expert or 0
