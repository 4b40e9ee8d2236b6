"""Documents of a packed row as a few padded rectangles, so that attention is neither one call per document nor one T x T mask.

Documents of similar length share a rectangle, padded on the right: under a causal mask no real token sees what lies to its right, so
padding changes nothing. Full attention would see padding: there only documents of equal length share one. Memory stays linear in the
tokens. Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_grouping.py``.

Shape suffixes: t tokens, s slots of all rectangles, b documents of one rectangle, l its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SHORT = 64  # up to this length a call costs more than the pairs it computes
_MIN_FILL, _MIN_FILL_SHORT = 0.75, 0.25  # shortest over longest document of a rectangle


@dataclass(frozen=True)
class Rectangle:
    """``count`` documents padded to ``length``, at ``start`` on the slot axis."""

    start: int
    count: int
    length: int

    @property
    def slots(self) -> slice:
        """Where its slots lie."""
        return slice(self.start, self.start + self.count * self.length)


@dataclass(frozen=True)
class DocumentGroups:
    """The rectangles of a packed row, and the way between tokens and slots.

    Attributes:
        rectangles: in slot order, longest documents first.
        token_s: the token of each slot (0 for padding); None when slots are the tokens themselves.
        padding_s: the slots that are padding.
        slot_t: the slot of each token.
    """

    rectangles: tuple[Rectangle, ...]
    token_s: Tensor | None = None
    padding_s: Tensor | None = None
    slot_t: Tensor | None = None

    @classmethod
    def from_lengths(cls, lengths: tuple[int, ...], device: torch.device | str = "cpu", *, padded: bool = True) -> DocumentGroups:
        """Group the documents of a packed row; those of one rectangle are equally long where none may be ``padded``."""
        if len(set(lengths)) == 1:
            return cls((Rectangle(0, len(lengths), lengths[0]),))
        by_length = sorted(range(len(lengths)), key=lambda document: -lengths[document])
        groups: list[list[int]] = []
        for document in by_length:
            longest = lengths[groups[-1][0]] if groups else 0
            min_fill = 1.0 if not padded else _MIN_FILL_SHORT if longest <= _SHORT else _MIN_FILL
            if groups and lengths[document] >= min_fill * longest:
                groups[-1].append(document)
            else:
                groups.append([document])

        rectangles, first_slots = [], [0] * len(lengths)
        slot = 0
        for group in groups:
            longest = lengths[group[0]]
            rectangles.append(Rectangle(slot, len(group), longest))
            for document in group:
                first_slots[document] = slot
                slot += longest

        lengths_b = torch.tensor(lengths)
        first_token_b = lengths_b.cumsum(0) - lengths_b
        offset_b = torch.tensor(first_slots) - first_token_b
        slot_t = torch.arange(int(lengths_b.sum())) + offset_b.repeat_interleave(lengths_b)
        token_s = torch.full((slot,), -1)
        token_s[slot_t] = torch.arange(slot_t.numel())
        padding_s = (token_s < 0).nonzero().squeeze(1)
        return cls(tuple(rectangles), token_s.clamp(min=0).to(device), padding_s.to(device), slot_t.to(device))

    def spread(self, x: Tensor) -> Tensor:
        """Take [T, ...] to [S, ...]; padding holds zeros."""
        if self.token_s is None:
            return x
        return _TakeRows.apply(x, self.token_s, self.padding_s, self.slot_t, None)  # type: ignore[return-value]

    def collect(self, x: Tensor) -> Tensor:
        """Take [S, ...] back to [T, ...]."""
        if self.token_s is None:
            return x
        return _TakeRows.apply(x, self.slot_t, None, self.token_s, self.padding_s)  # type: ignore[return-value]


class _TakeRows(torch.autograd.Function):
    """Rows of x by index, some of them zeroed; the backward is again a gather, because each row is taken once.

    Autograd's own backward of an index is an accumulating scatter, several times slower on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, take: Tensor, zero: Tensor | None, take_back: Tensor, zero_back: Tensor | None) -> Tensor:
        ctx.save_for_backward(take_back, zero_back)
        return _take(x, take, zero)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        take_back, zero_back = ctx.saved_tensors
        return _take(grad_outputs[0], take_back, zero_back), None, None, None, None


def _take(x: Tensor, take: Tensor, zero: Tensor | None) -> Tensor:
    rows = x.index_select(0, take)
    return rows if zero is None else rows.index_fill_(0, zero, 0.0)
