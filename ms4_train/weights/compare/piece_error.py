"""How far one piece of two checkpoints differs: streamed in chunks of rows, whatever layouts the two are in.

Quantised sides are dequantised in fp32 to be compared; where both are quantised alike, their codes and scales are compared too.
Exercise it: ``pytest tests/ms4_train/weights/compare/test_piece_error.py``.

Not covered: which pieces there are, and many of them at a time (``diff``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ms4_kernels.quantised import QuantisedWeight
from ms4_train.weights.layouts.pieces import Piece
from ms4_train.weights.reading.checkpoint import DTYPES, Checkpoint, Rows

CHUNK_VALUES = 1 << 21
"""Values of a piece that are held at a time, on each side, a few times in fp32 or fp64: at most some 100 MB for a thread."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PieceError:
    """One piece in A and B.

    Attributes:
        is_identical: every value has the same bits, in the wider of the two types.
        max_abs_error: largest |b - a|; infinite where one of them is not finite and the other differs.
        relative_error: Frobenius norm of the difference, as a share of A's.
        worst: index of the largest difference; None where there is none.
        worst_values: A's and B's value there.
        same_codes: whether codes are equal; None unless both are quantised alike.
        same_scales: likewise, of the weight scale and NVFP4's block scales.
        same_activation_scale: None unless both have one.
    """

    name: str
    shape: tuple[int, ...]
    is_identical: bool
    max_abs_error: float = 0.0
    relative_error: float = 0.0
    worst: tuple[int, ...] | None = None
    worst_values: tuple[float, float] | None = None
    same_codes: bool | None = None
    same_scales: bool | None = None
    same_activation_scale: bool | None = None

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing differs, scales and codes included."""
        return self.is_identical and False not in (self.same_codes, self.same_scales, self.same_activation_scale)


def compare_piece(a: Checkpoint, b: Checkpoint, piece: Piece, *, round_to: torch.dtype | None = None) -> PieceError:
    """Compare a piece that both checkpoints have, in one shape.

    Args:
        a: what errors are relative to.
        b: the other one.
        piece: one of the pieces of both.
        round_to: compare the values as this type has them; None compares exactly.

    Raises:
        WeightsError: a file cannot be read, or holds a code that is NaN (names file and tensor).
    """
    codes = scales = True if a.place(piece).encoding == b.place(piece).encoding != "plain" else None
    wide = torch.float64 if torch.float64 in (_plain_dtype(a, piece), _plain_dtype(b, piece)) else torch.float32
    is_identical = True
    for rows in _chunks(piece):
        x, y = a.read_piece(piece, rows), b.read_piece(piece, rows)
        if codes is not None:
            assert not isinstance(x, Tensor)
            assert not isinstance(y, Tensor)
            equal = [torch.equal(mine, theirs) for mine, theirs in zip(x.tensors, y.tensors, strict=True)]
            codes, scales = codes and equal[0], scales and all(equal[1:])
            if all(equal):
                continue
        elif isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == y.dtype and _same_bits(x, y):
            continue  # without widening
        is_identical = is_identical and _same_bits(*(values(side, wide, round_to) for side in (x, y)))
        if not (is_identical or codes or scales):
            break  # nothing is left to find out; sizes of errors come below
    mine, theirs = a.activation_scale(piece), b.activation_scale(piece)
    activation = None if mine is None or theirs is None else float(mine) == float(theirs)
    if is_identical:
        return PieceError(piece.name, piece.shape, True, same_codes=codes, same_scales=scales, same_activation_scale=activation)
    worst, worst_values, error = _measure(a, b, piece, wide, round_to)
    largest = abs(worst_values[1] - worst_values[0])
    largest = largest if math.isfinite(largest) else math.inf
    return PieceError(piece.name, piece.shape, False, largest, error, worst, worst_values, codes, scales, activation)


def _measure(
    a: Checkpoint, b: Checkpoint, piece: Piece, wide: torch.dtype, round_to: torch.dtype | None
) -> tuple[tuple[int, ...], tuple[float, float], float]:
    """Index of the largest difference, the values there, and the relative error; sums in fp64."""
    largest, worst, found = -1.0, 0, (0.0, 0.0)
    squares_a = squares_difference = 0.0
    row_size = piece.numel // piece.shape[0]
    for rows in _chunks(piece):
        x, y = (values(side.read_piece(piece, rows), wide, round_to).flatten() for side in (a, b))
        difference = (y - x).abs_()
        if not math.isfinite(float(difference.sum())):
            difference[x == y] = 0.0  # two infinities of one sign
            difference.nan_to_num_(nan=math.inf, posinf=math.inf)
        at = int(difference.argmax())
        if float(difference[at]) > largest:
            largest, worst, found = float(difference[at]), rows[0] * row_size + at, (float(x[at]), float(y[at]))
        squares_a += float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
        squares_difference += float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2
    index = tuple(int(part) for part in torch.unravel_index(torch.tensor(worst), piece.shape))
    return index, found, relative(squares_difference, squares_a)


def relative(squares_difference: float, squares: float) -> float:
    """Square root of a ratio of sums of squares; infinite where it has no finite value, 0 for 0 / 0."""
    if squares_difference == 0:
        return 0.0
    if not (math.isfinite(squares_difference) and math.isfinite(squares)) or squares == 0:
        return math.inf
    return math.sqrt(squares_difference / squares)


def common_dtype(a: Checkpoint, b: Checkpoint, piece: Piece) -> torch.dtype | None:
    """The type to which both sides of a pair can be rounded so that a right conversion of one into the other leaves no difference.

    That of the side that is not quantised, the narrower of two; None where both are quantised, or the types are bf16 and fp16.
    """
    found = [dtype for dtype in (_plain_dtype(a, piece), _plain_dtype(b, piece)) if dtype is not None]
    if set(found) == {torch.bfloat16, torch.float16}:
        return None
    return min(found, key=lambda dtype: dtype.itemsize, default=None)


def compare_rounded(a: Checkpoint, b: Checkpoint, piece: Piece) -> PieceError:
    """``compare_piece`` in ``common_dtype``: what is left is no rounding of a right conversion."""
    return compare_piece(a, b, piece, round_to=common_dtype(a, b, piece))


def _plain_dtype(checkpoint: Checkpoint, piece: Piece) -> torch.dtype | None:
    place = checkpoint.place(piece)
    return DTYPES[checkpoint.stored[place.values].info.dtype] if place.encoding == "plain" else None


def _chunks(piece: Piece) -> Iterator[Rows]:
    step = max(1, CHUNK_VALUES * piece.shape[0] // max(1, piece.numel))
    return ((start, min(start + step, piece.shape[0])) for start in range(0, piece.shape[0], step))


def values(part: Tensor | QuantisedWeight, wide: torch.dtype, round_to: torch.dtype | None) -> Tensor:
    """A part's values in ``wide``, rounded to ``round_to`` first where that is given; quantised ones are rounded once, on dequantising."""
    if not isinstance(part, Tensor):
        part = part.dequantise(round_to if round_to is not None else wide)
    return part.to(round_to).to(wide) if round_to is not None else part.to(wide)


def _same_bits(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x.view(_BITS[x.element_size()]), y.view(_BITS[y.element_size()]))
