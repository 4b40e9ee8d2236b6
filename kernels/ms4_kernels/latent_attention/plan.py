"""Which tokens of a forward pass attend to which cached positions: made once per pass, shared by all layers, and all of it on the device.

Layers do no work on the host for it. A pass of decoding alone has shapes that depend on the batch size only, so it can be captured in a
CUDA graph: make the plan inside the capture, by :meth:`LatentPlan.decode`, from buffers that are overwritten before each replay.
Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention/test_plan.py``.

Shape suffixes: t new tokens of all sequences, b sequences, j blocks of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["LatentPlan"]


@dataclass(frozen=True)
class LatentPlan:
    """The new tokens and their sequences' cache blocks; made by :meth:`of` or :meth:`decode`.

    Attributes:
        tables_bj: int32 [B, J], contiguous: the blocks of each sequence in order. Entries past a sequence's last token may hold anything.
        sequence_t: int32 [T], the sequence of each token; those of one sequence lie together, in order.
        position_t: int32 [T], the position of each token in its sequence; it sees the positions up to its own. Negative: padding, which
            sees nothing, is written nowhere, and whose result is 0.
        lengths: new tokens of each sequence; None where each has one (decoding).
        starts: position of each sequence's first new token; None where only the device knows.
        longest: a bound of positions + 1; 0: what the tables hold.
    """

    tables_bj: Tensor
    sequence_t: Tensor
    position_t: Tensor
    lengths: tuple[int, ...] | None = None
    starts: tuple[int, ...] | None = None
    longest: int = 0
    _slots: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, tables_bj: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> LatentPlan:
        """Plan a pass of sequences of which ``starts[b]`` tokens are cached and ``lengths[b]``, at least one, are new.

        Raises:
            ValueError: numbers of sequences that differ, or a sequence without new tokens.
        """
        if not len(starts) == len(lengths) == tables_bj.shape[0] or not lengths:
            raise ValueError(f"{len(starts)} starts, {len(lengths)} lengths and {tables_bj.shape[0]} block tables do not fit")
        if min(lengths) < 1 or min(starts) < 0:
            raise ValueError(f"every sequence needs a new token and a start of at least 0, got lengths {lengths}, starts {starts}")
        length_b = torch.tensor(lengths)
        sequence_t = torch.arange(len(lengths)).repeat_interleave(length_b)
        first_b = torch.tensor(starts) - length_b.cumsum(0) + length_b
        position_t = torch.arange(int(length_b.sum())) + first_b[sequence_t]
        both = torch.stack((sequence_t, position_t)).int().to(tables_bj.device)  # one transfer
        stops = [start + length for start, length in zip(starts, lengths, strict=True)]
        one_each = max(lengths) == 1
        return cls(tables_bj.int().contiguous(), both[0], both[1], None if one_each else tuple(lengths), tuple(starts), max(stops))

    @classmethod
    def decode(cls, tables_bj: Tensor, position_b: Tensor, *, longest: int = 0) -> LatentPlan:
        """Plan one new token per sequence, without a look at any value: ``position_b`` [B] on the device, negative for padding."""
        sequence_b = torch.arange(tables_bj.shape[0], dtype=torch.int32, device=tables_bj.device)
        return cls(tables_bj.int().contiguous(), sequence_b, position_b.int().contiguous(), longest=longest)

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.position_t.shape[0]

    def context_bound(self, block_size: int) -> int:
        """The most positions that a token may see, known without asking the device."""
        return self.longest or self.tables_bj.shape[1] * block_size

    def slots(self, block_size: int) -> Tensor:
        """Where the new tokens are written: int64 [T], block * block_size + offset, -1 for padding. Computed on the device, once."""
        if block_size not in self._slots:
            known_t = self.position_t.clamp(min=0).long()
            block_t = self.tables_bj[self.sequence_t.long(), known_t // block_size].long()
            self._slots[block_size] = torch.where(self.position_t < 0, -1, block_t * block_size + known_t % block_size)
        return self._slots[block_size]
