"""How the flat token axis of a forward pass splits into sequences.

The network takes all tokens of a batch as one axis without padding. Positions and attention limits follow from the layout alone, so a
token can neither see another document nor sit at a wrong position because of what a caller passed along.
Exercise it: ``pytest tests/ms4_train/model/test_layout.py``.

Shape suffixes: t tokens of all sequences in a row, b sequences (cu_seqlens: b + 1), s positions of a padded batch, j blocks of the longest
sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SequenceLayout:
    """Lengths of the sequences on the token axis, and where each one stands in a cache.

    Attributes:
        lengths: new tokens of each sequence, at least 1.
        starts: tokens of each sequence that lie in the cache already; () means none anywhere.
        slots: the one cache block of each sequence, where a block is as large as a sequence can get; None without such a cache.
        blocks: the cache blocks of each sequence, in order; those that new tokens are written to belong to one sequence alone.
    """

    lengths: tuple[int, ...]
    starts: tuple[int, ...] = ()
    slots: tuple[int, ...] | None = None
    blocks: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not self.starts:
            object.__setattr__(self, "starts", (0,) * len(self.lengths))
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"every sequence needs at least one token, got lengths {self.lengths}")
        if len(self.starts) != len(self.lengths) or min(self.starts) < 0:
            raise ValueError(f"{len(self.lengths)} sequences, but starts {self.starts}")
        if self.slots is not None and (len(self.slots) != len(self.lengths) or len(set(self.slots)) != len(self.slots)):
            raise ValueError(f"{len(self.lengths)} sequences need as many different slots, got {self.slots}")
        if self.blocks is not None and (self.slots is not None or len(self.blocks) != len(self.lengths)):
            raise ValueError(f"{len(self.lengths)} sequences need as many lists of blocks and no slots, got {len(self.blocks)}")

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> SequenceLayout:
        """Lay out fresh sequences (documents of a packed row) of these lengths."""
        return cls(tuple(int(length) for length in lengths))

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens_b: Tensor) -> SequenceLayout:
        """Read boundaries ``[0, l0, l0 + l1, ...]`` of fresh sequences."""
        if cu_seqlens_b.dim() != 1 or cu_seqlens_b.numel() < 2 or int(cu_seqlens_b[0]) != 0:
            raise ValueError("cu_seqlens must be one-dimensional, start with 0 and hold at least one sequence")
        return cls.from_lengths(cu_seqlens_b.diff().tolist())

    @classmethod
    def from_attention_mask(cls, mask_bs: Tensor) -> SequenceLayout:
        """Read a padded batch, padded on either side; its tokens are ``input_ids_bs[mask_bs.bool()]``.

        Raises:
            ValueError: a row without tokens or with padding between tokens.
        """
        real_bs = mask_bs.bool()
        lengths_b = real_bs.sum(dim=1)
        rises_b = (real_bs[:, 1:] & ~real_bs[:, :-1]).sum(dim=1) + real_bs[:, 0]
        if bool((rises_b != 1).any()):
            raise ValueError("each row of an attention mask must hold one unbroken run of tokens")
        return cls.from_lengths(lengths_b.tolist())

    @property
    def num_tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(self.lengths)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Tokens of each sequence after this forward pass, cached ones included."""
        return tuple(start + length for start, length in zip(self.starts, self.lengths, strict=True))

    @cached_property
    def cu_seqlens_b(self) -> Tensor:
        """Boundaries of the sequences on the token axis, int64 [B + 1], on the CPU."""
        return torch.tensor((0, *self.lengths)).cumsum(0)

    @cached_property
    def sequence_t(self) -> Tensor:
        """The sequence of each token, int64 [T], on the CPU."""
        return torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))

    @cached_property
    def position_t(self) -> Tensor:
        """The position of each token in its own sequence, int64 [T], on the CPU."""
        first_b = torch.tensor(self.starts) - self.cu_seqlens_b[:-1]
        return torch.arange(self.num_tokens) + first_b[self.sequence_t]

    @property
    def num_fresh(self) -> int:
        """How many sequences at the front continue nothing that is in the cache."""
        return next((index for index, start in enumerate(self.starts) if start), len(self.starts))

    @cached_property
    def tables(self) -> tuple[tuple[int, ...], ...]:
        """The cache blocks of each sequence.

        Raises:
            ValueError: the layout names neither blocks nor slots.
        """
        if self.blocks is not None:
            return self.blocks
        if self.slots is None:
            raise ValueError("a forward pass with a cache needs the layout's slots or blocks")
        return tuple((slot,) for slot in self.slots)

    @cached_property
    def table_bj(self) -> Tensor:
        """``tables`` as one tensor, int32 [B, J], on the CPU; 0 where a sequence has fewer blocks than the longest one."""
        longest = max(len(table) for table in self.tables)
        return torch.tensor([[*table, *(0,) * (longest - len(table))] for table in self.tables], dtype=torch.int32)
