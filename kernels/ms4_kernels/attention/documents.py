"""The documents of a packed row, and what each backend derives from their lengths: made when first asked for, once for all layers.

Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_documents.py``.

Shape suffixes: t tokens of the row, b documents (cu_seqlens: b + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ms4_kernels.attention.grouping import DocumentGroups


@dataclass(frozen=True)
class PackedDocuments:
    """Documents that lie behind one another on a token axis.

    Attributes:
        lengths: tokens of each document, at least 1.
        device: where the derived tensors live; that of the queries.
    """

    lengths: tuple[int, ...]
    device: torch.device

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"every document needs at least one token, got lengths {self.lengths}")

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)

    @cached_property
    def groups(self) -> DocumentGroups:
        """Documents of similar length as padded rectangles, for causal attention."""
        return DocumentGroups.from_lengths(self.lengths, self.device)

    @cached_property
    def equal_groups(self) -> DocumentGroups:
        """Documents of equal length as rectangles without padding, for full attention."""
        return DocumentGroups.from_lengths(self.lengths, self.device, padded=False)

    @cached_property
    def cu_seqlens_b(self) -> Tensor:
        """Boundaries of the documents, int32 [B + 1] on the device."""
        return torch.tensor((0, *self.lengths)).cumsum(0).to(self.device, torch.int32)

    @cached_property
    def document_t(self) -> Tensor:
        """The document of each token, int32 [T] on the device."""
        lengths_b = torch.tensor(self.lengths)
        return torch.arange(len(self.lengths), dtype=torch.int32).repeat_interleave(lengths_b).to(self.device)

    @cached_property
    def block_mask(self) -> Any:
        """FlexAttention's block mask of this row for causal attention."""
        return self._block_mask(causal=True)

    @cached_property
    def full_block_mask(self) -> Any:
        """FlexAttention's block mask of this row for full attention."""
        return self._block_mask(causal=False)

    def _block_mask(self, *, causal: bool) -> Any:
        from ms4_kernels.attention.flex import document_block_mask  # imports most of torch's compiler

        return document_block_mask(self.document_t, causal=causal)
