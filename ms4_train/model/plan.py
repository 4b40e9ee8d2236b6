"""What all layers of one forward pass share: rotary tables, query scale, and how attention walks the sequences.

Exercise it: ``pytest tests/ms4_train/model/test_plan.py``.

Shape suffixes: t new tokens, b sequences, q new tokens of the longest sequence, s cached and new positions of the longest sequence,
p rotary lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ms4_kernels.attention import PackedDocuments
from ms4_train.model.config import TextConfig
from ms4_train.model.layout import SequenceLayout
from ms4_train.model.rope import RotaryTable, llama4_query_scale


@dataclass(frozen=True)
class QueryGrid:
    """New tokens of sequences that continue cached ones, as a padded [B, Q] grid, and which positions each may see.

    Attributes:
        token_bq: the token of each cell; 0 for padding.
        cell_t: the cell (b * Q + q) of each token.
        hidden_bqs: True where a position lies after the query, and so must not be seen.
    """

    token_bq: Tensor
    cell_t: Tensor
    hidden_bqs: Tensor

    @classmethod
    def from_layout(cls, layout: SequenceLayout, device: torch.device) -> QueryGrid:
        """Build the grid of a layout."""
        longest = max(layout.lengths)
        starts_b, lengths_b = torch.tensor(layout.starts), torch.tensor(layout.lengths)
        step_q = torch.arange(longest)
        real_bq = step_q < lengths_b[:, None]
        token_bq = torch.where(real_bq, layout.cu_seqlens_b[:-1, None] + step_q, 0)
        last_seen_bq = starts_b[:, None] + step_q.expand(len(layout.lengths), -1)
        hidden_bqs = torch.arange(max(layout.stops)) > last_seen_bq[..., None]
        cell_t = real_bq.flatten().nonzero().squeeze(1)
        return cls(token_bq.to(device), cell_t.to(device), hidden_bqs.to(device))


@dataclass(frozen=True)
class AttentionPlan:
    """Made once per forward pass. Exactly one of ``documents`` (expanded form) and ``grid`` (absorbed form) is set.

    Attributes:
        query_scale_t: Llama-4 factor on the query, None where it is 1 for every token.
    """

    layout: SequenceLayout
    cos_tp: Tensor
    signed_sin_tp: Tensor
    query_scale_t: Tensor | None
    documents: PackedDocuments | None
    grid: QueryGrid | None

    @classmethod
    def build(cls, layout: SequenceLayout, config: TextConfig, rotary: RotaryTable, device: torch.device) -> AttentionPlan:
        """Plan the forward pass of a layout on a device."""
        position_t = layout.position_t.to(device)
        cos_tp, signed_sin_tp = rotary(position_t)
        is_long = max(layout.stops) > config.rope_parameters.original_max_position_embeddings
        return cls(
            layout=layout,
            cos_tp=cos_tp,
            signed_sin_tp=signed_sin_tp,
            query_scale_t=llama4_query_scale(position_t, config.rope_parameters) if is_long else None,
            documents=PackedDocuments(layout.lengths, device) if layout.is_fresh else None,
            grid=None if layout.is_fresh else QueryGrid.from_layout(layout, device),
        )
