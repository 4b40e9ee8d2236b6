"""Documents of a packed row as runs of equal length, which is what the CPU path works through.

Long documents, and neighbours of one length, stay where they are: their tokens are read through views. Short ones of different lengths
would each cost more in calls than in arithmetic, so they are gathered into padded rectangles.
Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_runs.py``.

Shape suffixes: t tokens, s slots of one run (count * length), r slots that are tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ms4_kernels.attention.grouping import DocumentGroups

_SHORT = 64


@dataclass(frozen=True)
class Run:
    """``count`` documents of ``length`` tokens each.

    Attributes:
        start: the first token, where the documents lie behind one another.
        token_s: else the token of each slot, with ``padding_s`` the slots that hold none, ``real_r`` the others and ``token_r`` theirs.
    """

    count: int
    length: int
    start: int = 0
    token_s: Tensor | None = None
    padding_s: Tensor | None = None
    real_r: Tensor | None = None
    token_r: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """[T, ...] to [S, ...], zeros in padding; a view where the documents lie behind one another."""
        if self.token_s is None:
            return x[self.start : self.start + self.count * self.length]
        assert self.padding_s is not None
        return x.index_select(0, self.token_s).index_fill_(0, self.padding_s, 0.0)

    def put(self, out: Tensor, x: Tensor) -> None:
        """Write [S, ...] to this run's tokens of [T, ...], whose other rows stay."""
        assert self.token_r is not None
        assert self.real_r is not None
        out.index_copy_(0, self.token_r, x.index_select(0, self.real_r))


def runs_of(lengths: tuple[int, ...]) -> tuple[Run, ...]:
    """Split a packed row into runs; index tensors lie on the CPU."""
    in_place, start = [], 0
    for length, same in groupby(lengths):
        count = len(list(same))
        in_place.append(Run(count, length, start))
        start += count * length
    scattered = [run for run in in_place if run.length <= _SHORT]
    if len(scattered) <= 1:
        return tuple(in_place)
    return (*(run for run in in_place if run.length > _SHORT), *_gathered(scattered))


def _gathered(scattered: list[Run]) -> list[Run]:
    """Padded rectangles that hold the documents of these runs."""
    token_u = torch.cat([torch.arange(run.start, run.start + run.count * run.length) for run in scattered])
    groups = DocumentGroups.from_lengths(tuple(run.length for run in scattered for _ in range(run.count)))
    runs = []
    for rectangle in groups.rectangles:
        if groups.token_s is None:
            is_real_s = torch.ones(rectangle.count * rectangle.length, dtype=torch.bool)
            token_s = token_u[rectangle.slots]
        else:
            assert groups.padding_s is not None
            is_padding_s = torch.zeros(groups.token_s.numel(), dtype=torch.bool).index_fill_(0, groups.padding_s, True)
            is_real_s = ~is_padding_s[rectangle.slots]
            token_s = token_u[groups.token_s[rectangle.slots]]
        padding_s, real_r = (~is_real_s).nonzero().squeeze(1), is_real_s.nonzero().squeeze(1)
        runs.append(Run(rectangle.count, rectangle.length, 0, token_s, padding_s, real_r, token_s[real_r]))
    return runs
