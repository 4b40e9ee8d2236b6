"""What all layers of one forward pass share: rotary tables, query scale, and which form of attention each token takes.

Sequences at the front that continue nothing take the expanded form, and so does all of training. All others take the absorbed form over
the cache. One pass can hold both: what lies between the attentions, the experts above all, then runs once over all tokens.
Exercise it: ``pytest tests/ms4_train/model/test_plan.py``.

Shape suffixes: t new tokens, b sequences, j blocks of the longest sequence, p rotary lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ms4_kernels.attention import PackedDocuments
from ms4_kernels.latent_attention import LatentPlan
from ms4_train.model.cache import LatentCache, check_room
from ms4_train.model.config import TextConfig
from ms4_train.model.layout import SequenceLayout
from ms4_train.model.rope import RotaryTable, llama4_query_scale


@dataclass(frozen=True)
class AttentionPlan:
    """Made once per forward pass.

    Attributes:
        num_expanded: how many tokens, the first ones, take the expanded form.
        query_scale_t: Llama-4 factor on the query, None where it is 1 for every token.
        documents: the sequences of the expanded form; None where there are none.
        latents: those of the absorbed form; None where there are none.
        slot_t: where each token's latent is written, block * block size + offset, int64 [T]; negative: nowhere. None without a cache.
    """

    num_expanded: int
    cos_tp: Tensor
    signed_sin_tp: Tensor
    query_scale_t: Tensor | None
    documents: PackedDocuments | None
    latents: LatentPlan | None
    slot_t: Tensor | None

    @property
    def num_tokens(self) -> int:
        """New tokens of the pass."""
        return self.cos_tp.shape[0]

    @classmethod
    def build(
        cls,
        layout: SequenceLayout,
        config: TextConfig,
        rotary: RotaryTable,
        device: torch.device,
        cache: LatentCache | None = None,
        *,
        expands: bool = True,
    ) -> AttentionPlan:
        """Plan the forward pass of a layout on a device.

        Args:
            cache: takes the new tokens' latents, and holds the earlier ones.
            expands: whether fresh sequences take the expanded form. If not, a token's result does not depend on how its sequence was cut.

        Raises:
            ValueError: a sequence that does not fit its blocks, or one that continues where there is no cache.
        """
        num_fresh = layout.num_fresh if expands else 0
        continues = num_fresh < len(layout.lengths)
        if continues and cache is None:
            raise ValueError("sequences that continue earlier tokens need the cache that holds them")
        position_t = layout.position_t.to(device)
        cos_tp, signed_sin_tp = rotary(position_t)
        is_long = max(layout.stops) > config.rope_parameters.original_max_position_embeddings
        latents = slot_t = None
        if cache is not None:
            check_room(cache, layout)
            table_bj = layout.table_bj.to(device)
            everything = LatentPlan.of(table_bj, layout.starts, layout.lengths)
            slot_t = everything.slots(cache.pools[0].shape[1])
            if continues and num_fresh:
                latents = LatentPlan.of(table_bj[num_fresh:], layout.starts[num_fresh:], layout.lengths[num_fresh:])
            elif continues:
                latents = everything
        fresh = layout.lengths[:num_fresh]
        return cls(
            num_expanded=sum(fresh),
            cos_tp=cos_tp,
            signed_sin_tp=signed_sin_tp,
            query_scale_t=llama4_query_scale(position_t, config.rope_parameters) if is_long else None,
            documents=PackedDocuments(fresh, device) if fresh else None,
            latents=latents,
            slot_t=slot_t,
        )

    @classmethod
    def decode(cls, table_bj: Tensor, position_b: Tensor, config: TextConfig, rotary: RotaryTable, cache: LatentCache) -> AttentionPlan:
        """Plan a pass of one token per sequence without a look at any value, so that a CUDA graph may record it.

        Args:
            table_bj: int32 [B, J], blocks of each sequence; what lies behind those in use is not read.
            position_b: int64 [B], of each token in its sequence; negative: padding, which is written nowhere.
            cache: holds the earlier latents.
        """
        block_size = cache.pools[0].shape[1]
        latents = LatentPlan.decode(table_bj, position_b)
        known_b = position_b.clamp(min=0)
        cos_bp, signed_sin_bp = rotary(known_b)
        may_be_long = latents.context_bound(block_size) > config.rope_parameters.original_max_position_embeddings
        return cls(
            num_expanded=0,
            cos_tp=cos_bp,
            signed_sin_tp=signed_sin_bp,
            query_scale_t=llama4_query_scale(known_b, config.rope_parameters) if may_be_long else None,
            documents=None,
            latents=latents,
            slot_t=latents.slots(block_size),
        )

    @classmethod
    def empty(cls, rotary: RotaryTable, device: torch.device) -> AttentionPlan:
        """Plan a pass without tokens: of a rank that has nothing to compute, but whose experts the others need."""
        cos_tp, signed_sin_tp = rotary(torch.empty(0, dtype=torch.int64, device=device))
        return cls(0, cos_tp, signed_sin_tp, None, None, None, None)
