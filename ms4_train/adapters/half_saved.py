"""Finding an adapter of which only one process's share was written: the rest of every tensor is exactly zero.

A sharded model that is saved without gathering leaves a file of full shapes with one aligned block of values and zeros elsewhere. Training
does not leave that behind, so it is refused. What training does leave behind passes:

- a pair whose B is all zero: an untrained target, or a whole untrained adapter;
- experts that never saw a token: their B is zero, but they differ from layer to layer and are no aligned block of the experts;
- ranks that are zero in A and in B: padding of a smaller adapter.

Rules, over all pairs whose B is not zero, and apart for linear layers and for stacks of experts. With one number n of processes (2 or
more) and one share k, in EVERY pair the values that are not zero lie in share k of n of: the rows of B (outputs); the ranks of one of A
and B while the other has more; the experts of A while B has more; or, in at least two layers that together fill it, the experts of B.
Exercise it: ``pytest tests/ms4_train/adapters/test_half_saved.py``.

Not covered: shares of the inputs; two shares of the same file mixed.

Shape suffixes: e experts (1 for a linear layer), r rank, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Occupancy:
    """Where the values of one pair are not zero.

    Attributes:
        name: of the adapted module or stack.
        rows_o: rows of B.
        ranks_a: ranks in A.
        ranks_b: ranks in B.
        experts_a: experts in A; one element for a linear layer.
        experts_b: experts in B, likewise.
    """

    name: str
    rows_o: Tensor
    ranks_a: Tensor
    ranks_b: Tensor
    experts_a: Tensor
    experts_b: Tensor


@dataclass(frozen=True)
class LostShare:
    """What is left of a half-saved adapter: share ``share`` (from 0) of ``processes`` along ``axis``; ``name`` is an example."""

    axis: str
    processes: int
    share: int
    name: str

    @property
    def message(self) -> str:
        """One sentence for an error."""
        return (
            f"is half-saved: of the {self.axis} of every tensor only part {self.share + 1} of {self.processes} holds values, "
            "the rest is exactly zero."
        )


HALF_SAVED_FIX = "save it again with the parameters of all processes gathered; the lost values are not in this file."


def occupancy(name: str, a_eri: Tensor, b_eor: Tensor) -> Occupancy | None:
    """Where a pair is not zero; None where B is all zero, which says nothing."""
    is_b_eor = b_eor != 0
    if not bool(is_b_eor.any()):
        return None
    is_a_er, is_b_er = (a_eri != 0).any(2), is_b_eor.any(1)
    return Occupancy(
        name,
        rows_o=is_b_eor.any(2).any(0),
        ranks_a=is_a_er.any(0),
        ranks_b=is_b_er.any(0),
        experts_a=is_a_er.any(1),
        experts_b=is_b_er.any(1),
    )


def lost_share(found: Iterable[Occupancy]) -> LostShare | None:
    """The share that a half-saved adapter consists of; None for a sound one.

    Args:
        found: of all linear layers, or of all stacks of experts.
    """
    pairs = list(found)
    if not pairs:
        return None
    shares = (
        _common_share("outputs", pairs, [pair.rows_o for pair in pairs]),
        _one_sided("ranks in lora_B", pairs, [pair.ranks_b for pair in pairs], [pair.ranks_a for pair in pairs]),
        _one_sided("ranks in lora_A", pairs, [pair.ranks_a for pair in pairs], [pair.ranks_b for pair in pairs]),
        _one_sided("experts in lora_A", pairs, [pair.experts_a for pair in pairs], [pair.experts_b for pair in pairs]),
        _lost_experts(pairs),
    )
    return next((share for share in shares if share is not None), None)


def _one_sided(axis: str, pairs: Sequence[Occupancy], masks: Sequence[Tensor], others: Sequence[Tensor]) -> LostShare | None:
    """A share on one side of each pair while the other side has values outside it; zero on both sides is padding."""
    if not all(bool((other & ~mask).any()) for mask, other in zip(masks, others, strict=True)):
        return None
    return _common_share(axis, pairs, masks)


def _lost_experts(pairs: Sequence[Occupancy]) -> LostShare | None:
    """A share of the experts; it must be filled, by layers together, or experts that few tokens reach would look like one."""
    layers = {pair.name.partition(".mlp.")[0] for pair in pairs}
    if len(layers) < 2 or len({len(pair.experts_b) for pair in pairs}) != 1:
        return None
    used_e = torch.stack([pair.experts_b for pair in pairs]).any(0)
    share = _common_share("experts", pairs, [used_e])
    return share if share is not None and int(used_e.sum()) == -(-len(used_e) // share.processes) else None


def _common_share(axis: str, pairs: Sequence[Occupancy], masks: Sequence[Tensor]) -> LostShare | None:
    """The (n, k) with the largest n for which every mask is inside share k of n, or None."""
    spans = []
    for mask in masks:
        places = mask.nonzero()
        if len(mask) < 2 or not len(places):
            return None
        spans.append((len(mask), int(places[0]), int(places[-1])))
    # A share is at least as wide as the span it holds, so a sound adapter, whose spans are whole, leaves nothing to try.
    most = min(size // max(last - first, 1) for size, first, last in spans)
    for processes in range(most, 1, -1):
        shares = {_share(processes, *span) for span in spans}
        if len(shares) == 1 and None not in shares:
            share = shares.pop()
            assert share is not None
            filled = max(-(-size // -(-size // processes)) for size, _, _ in spans)  # more processes than shares would stay empty
            return LostShare(axis, filled, share, pairs[0].name)
    return None


def _share(processes: int, size: int, first: int, last: int) -> int | None:
    """Which of ``processes`` aligned shares holds ``first`` to ``last``; None where it takes more than one."""
    width = -(-size // processes)
    return first // width if first // width == last // width else None
