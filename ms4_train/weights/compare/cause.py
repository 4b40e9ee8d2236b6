"""Which weight makes a block differ from its source, and what kind of mistake it looks like.

Exercise it: ``pytest tests/ms4_train/weights/compare/test_cause.py``.

Not covered: several mistakes in one matrix, and the configuration (``config_diff``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from ms4_train.weights.compare.diff import compare_pieces
from ms4_train.weights.compare.piece_error import PieceError, common_dtype, compare_rounded, values
from ms4_train.weights.layouts.pieces import Piece
from ms4_train.weights.reading.checkpoint import Checkpoint, Rows

MAX_VALUES = 1 << 25
"""Values of a piece that are looked at, on each side; of a larger one the rows around its largest difference."""

_SAME = 2.0**-8
"""A relative difference below this is rounding: no value in bf16 is further from the right one."""
_ROWS = 64


@dataclass(frozen=True)
class Cause:
    """A piece that differs, by how much, and in words what it looks like."""

    piece: PieceError
    words: str


def find_cause(source: Checkpoint, result: Checkpoint, prefixes: tuple[str, ...], tolerance: float = 0.0) -> Cause | None:
    """The piece of a block that is furthest off.

    Args:
        source: what the result should be.
        result: the checkpoint that differs.
        prefixes: of the names of the block's pieces.
        tolerance: what a right conversion of this pair may differ by.

    Returns:
        None where the block's weights are the same, as when only the configuration differs.

    Raises:
        WeightsError: a file cannot be read.
    """
    wanted = [piece for name, piece in source.pieces().items() if name.startswith(prefixes)]
    errors = compare_pieces(source, result, wanted, compare=compare_rounded)
    worst = max(errors, key=lambda error: error.relative_error)
    if worst.is_identical:
        return None
    return name_mistake(source, result, worst, tolerance)


def name_mistake(source: Checkpoint, result: Checkpoint, error: PieceError, tolerance: float = 0.0) -> Cause:
    """Say what a piece that differs looks like. Arguments and errors as of ``find_cause``."""
    return Cause(error, _words(source, result, error, max(_SAME, tolerance)))


def _words(source: Checkpoint, result: Checkpoint, error: PieceError, same: float) -> str:
    piece = source.pieces()[error.name]
    rows = _rows_around(piece, error.worst)
    mine, theirs = (_read(source, result, side, piece, rows) for side in (source, result))
    if not bool(theirs.isfinite().all()) or not bool(mine.isfinite().all()):
        return "holds values that are not finite"
    if _close(theirs, -mine, same):
        return "has every sign flipped"
    partner = _partner(source, piece)
    if partner is not None and _close(theirs, _read(source, result, source, partner, rows), same):
        return f"holds the source's {partner.matrix}: gate and up are swapped"
    other = _other_expert(source, result, piece, theirs, rows, same)
    if other is not None:
        return f"holds the source's expert {other}"
    factor = float((theirs * mine).sum() / mine.square().sum())
    if abs(factor - 1) > same and _close(theirs, factor * mine, same):
        return f"is {factor:.3g} times the source's: a wrong scale"
    if mine.dim() == 2 and _is_moved(theirs, mine, same):
        return "has the source's rows in another order"
    count = int((theirs != mine).sum())
    if count <= mine.numel() // 100:
        return f"differs in {count:,} of {mine.numel():,} values"
    return f"differs by {error.relative_error:.3g} of its norm"


def _rows_around(piece: Piece, worst: tuple[int, ...] | None) -> Rows:
    step = max(1, MAX_VALUES * piece.shape[0] // max(1, piece.numel))
    start = (worst[0] if worst else 0) // step * step
    return start, min(start + step, piece.shape[0])


def _read(source: Checkpoint, result: Checkpoint, side: Checkpoint, piece: Piece, rows: Rows) -> Tensor:
    return values(side.read_piece(piece, rows), torch.float32, common_dtype(source, result, piece))


def _close(found: Tensor, expected: Tensor, same: float) -> bool:
    return found.shape == expected.shape and float((found - expected).norm()) <= same * float(expected.norm())


def _partner(checkpoint: Checkpoint, piece: Piece) -> Piece | None:
    swapped = {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(piece.matrix)
    return None if swapped is None else checkpoint.pieces()[piece.name.replace(piece.matrix, swapped)]


def _other_expert(source: Checkpoint, result: Checkpoint, piece: Piece, theirs: Tensor, rows: Rows, same: float) -> int | None:
    """The expert of the same layer whose first of these rows is the one found."""
    if piece.expert is None:
        return None
    known = source.pieces()
    for expert in range(source.config.text.n_routed_experts):
        other = known[re.sub(r"\.experts\.\d+\.", f".experts.{expert}.", piece.name)]
        if expert != piece.expert and _close(theirs[:1], _read(source, result, source, other, (rows[0], rows[0] + 1)), same):
            return expert
    return None


def _is_moved(theirs: Tensor, mine: Tensor, same: float) -> bool:
    """Whether the rows found, from the first wrong one on, are rows of the source, each another one, and not all in their place."""
    wrong = (theirs != mine).any(dim=1).nonzero()
    first = int(wrong[0]) if len(wrong) else 0
    found = theirs[first : first + _ROWS]
    at = torch.cdist(found, mine).argmin(dim=1)
    is_elsewhere = bool((at != torch.arange(first, first + len(found))).any())
    return is_elsewhere and len(at.unique()) == len(found) and _close(found, mine[at], same)
