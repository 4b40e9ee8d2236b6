"""Multi-head latent attention (spec section 2.1), in two forms of the same function.

Expanded: keys and values of each head are computed from the latents; for fresh sequences. Absorbed: the up-projection of keys moves to the
query and that of values behind the softmax, so that attention runs over the cached latents themselves; for sequences that continue cached
ones. Head layout: q and k are [no position | rotary], rows of ``kv_b_proj`` per head are [key | value].
Exercise it: ``pytest tests/ms4_train/model/test_attention.py``.

Shape suffixes: t new tokens, d hidden, h heads, x head width (key: no position + rotary), n key width without position, v value width,
q query latent (q_lora_rank), c latent (kv_lora_rank), p rotary lanes, m = c + p as cached; i, o inputs and outputs of a product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ms4_kernels.attention import PackedDocuments, packed_attention
from ms4_kernels.latent_attention import LatentPlan, latent_attention, write_latents
from ms4_kernels.native.linear import linear
from ms4_train.model.cache import LatentCache
from ms4_train.model.config import TextConfig
from ms4_train.model.linear import Linear, joined_weight
from ms4_train.model.norm import RMSNorm
from ms4_train.model.plan import AttentionPlan
from ms4_train.model.rope import apply_rotary, rotate_last_lanes
from ms4_train.model.row_segments import RowSegment, current_segments, row_segments, segments_of

_LATENT_NORM_EPS = 1e-6  # transformers builds these two norms with its default, whatever rms_norm_eps says; the release has 1e-6 for both


class Absorbed(NamedTuple):
    """The up-projections as the absorbed form multiplies by them: of keys, on the query; of values, behind the softmax."""

    key_up_hnc: Tensor
    value_up_hvc: Tensor


class Mistral4Attention(nn.Module):
    """One layer's attention; parameters are named as in transformers."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.nope_dim, self.rope_dim, self.value_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.latent_rank = config.kv_lora_rank
        self.scale = config.attention_scale
        self.q_a_proj = Linear(config.hidden_size, config.q_lora_rank)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, _LATENT_NORM_EPS)
        self.q_b_proj = Linear(config.q_lora_rank, self.num_heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, config.latent_dim)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, _LATENT_NORM_EPS)
        self.kv_b_proj = Linear(config.kv_lora_rank, self.num_heads * (self.nope_dim + self.value_dim))
        self.o_proj = Linear(self.num_heads * self.value_dim, config.hidden_size)
        self._kept: dict[tuple[str, ...], Absorbed] | None = None
        self._first_oi: Tensor | None = None

    def forward(self, hidden_td: Tensor, plan: AttentionPlan, cache: LatentCache | None) -> Tensor:
        """Attend within each sequence.

        Args:
            hidden_td: normalised tokens [T, d].
            plan: of the pass.
            cache: takes the new tokens' latents; must hold the earlier ones when a sequence continues.

        Returns:
            [T, d], after the output projection.
        """
        query_tq, latent_tm = self._first_products(hidden_td)
        query_thx, latent_tm = self._queries(query_tq, plan), self._latents(latent_tm, plan)
        if cache is not None and plan.slot_t is not None:
            write_latents(cache.pools[self.layer], latent_tm.detach(), plan.slot_t)
        split, parts = plan.num_expanded, []
        if plan.documents is not None:
            with segments_of(0, split):
                parts.append(self._attend_expanded(query_thx[:split], latent_tm[:split], plan.documents))
        if plan.latents is not None:
            assert cache is not None
            with segments_of(split, plan.num_tokens):
                parts.append(self._attend_absorbed(query_thx[split:], cache.pools[self.layer], plan.latents))
        out_thv = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else query_thx.new_empty(0, self.num_heads, self.value_dim)
        return self.o_proj(out_thv.flatten(1))

    def prepare_decode(self, *, joins: bool = False) -> None:
        """Keep the absorbed matrices until :meth:`release_decode`. Call it again after the weights change.

        Args:
            joins: keep a copy of the two projections of the hidden state as one matrix too, where both are plain. Few tokens then take one
                product, and many one of equal cost.
        """
        with torch.no_grad():
            self._kept = {}
            self._absorbed(None)
            self._first_oi = joined_weight(self.q_a_proj, self.kv_a_proj_with_mqa) if joins else None

    def release_decode(self) -> None:
        """Drop the kept matrices."""
        self._kept = self._first_oi = None

    @property
    def is_prepared(self) -> bool:
        """Whether the absorbed matrices are kept."""
        return self._kept is not None

    def _first_products(self, hidden_td: Tensor) -> tuple[Tensor, Tensor]:
        """The query's latent [T, q] and what becomes the token's own [T, m]."""
        if self._first_oi is None:
            return self.q_a_proj(hidden_td), self.kv_a_proj_with_mqa(hidden_td)
        width = self.latent_rank + self.rope_dim
        query_tq, latent_tm = linear(hidden_td, self._first_oi).split((self._first_oi.shape[0] - width, width), dim=-1)
        return query_tq, latent_tm

    def _queries(self, query_tq: Tensor, plan: AttentionPlan) -> Tensor:
        query_thx = self.q_b_proj(self.q_a_layernorm(query_tq)).unflatten(-1, (self.num_heads, -1))
        query_thx = rotate_last_lanes(query_thx, plan.cos_tp, plan.signed_sin_tp)
        if plan.query_scale_t is not None:
            query_thx = query_thx * plan.query_scale_t[:, None, None].to(query_thx.dtype)
        return query_thx

    def _latents(self, latent_tm: Tensor, plan: AttentionPlan) -> Tensor:
        latent_tc, rope_tp = latent_tm.split((self.latent_rank, self.rope_dim), dim=-1)
        return torch.cat((self.kv_a_layernorm(latent_tc), apply_rotary(rope_tp, plan.cos_tp, plan.signed_sin_tp)), dim=-1)

    def _attend_expanded(self, query_thx: Tensor, latent_tm: Tensor, documents: PackedDocuments) -> Tensor:
        latent_tc, rope_tp = latent_tm.split((self.latent_rank, self.rope_dim), dim=-1)
        nope_thn, value_thv = self.kv_b_proj(latent_tc).unflatten(-1, (self.num_heads, -1)).split((self.nope_dim, self.value_dim), dim=-1)
        key_thx = torch.cat((nope_thn, rope_tp[:, None].expand(-1, self.num_heads, -1)), dim=-1)
        return packed_attention(query_thx, key_thx, value_thv, documents, scale=self.scale)

    def _attend_absorbed(self, query_thx: Tensor, pool_nsm: Tensor, plan: LatentPlan) -> Tensor:
        if torch.is_grad_enabled() and query_thx.requires_grad:
            raise ValueError("attention over cached latents has no gradient: run it under torch.no_grad(), or without a cache")
        segments = current_segments() or (RowSegment(None, 0, query_thx.shape[0]),)
        parts = [(slice(segment.start, segment.stop), self._absorbed(segment.adapter)) for segment in segments]
        nope_thn, rope_thp = query_thx.split((self.nope_dim, self.rope_dim), dim=-1)
        absorbed = [torch.bmm(nope_thn[rows].transpose(0, 1), up.key_up_hnc).transpose(0, 1) for rows, up in parts]
        query_thm = torch.cat((_joined(absorbed), rope_thp), dim=-1)
        mixed_thc = latent_attention(query_thm, pool_nsm, plan, scale=self.scale, latent_rank=self.latent_rank)
        return _joined([torch.bmm(mixed_thc[rows].transpose(0, 1), up.value_up_hvc.transpose(1, 2)).transpose(0, 1) for rows, up in parts])

    def _absorbed(self, adapter: str | None) -> Absorbed:
        """The up-projections of a row for this adapter; None: for the model as it stands."""
        names_of = getattr(self.kv_b_proj, "names_of", None)  # of a projection that carries adapters: those that act on such a row
        names = () if names_of is None else names_of(adapter)
        if self._kept is not None and names in self._kept:
            return self._kept[names]
        # Read off the module's action on an identity, so that adapters on it count, and quantised codes.
        reference = self.kv_a_layernorm.weight  # not the projection's own: that may be quantised
        identity_cc = torch.eye(self.latent_rank, dtype=reference.dtype, device=reference.device)
        with row_segments([RowSegment(adapter, 0, self.latent_rank)]):
            up_hxc = self.kv_b_proj(identity_cc).t().unflatten(0, (self.num_heads, -1))
        absorbed = Absorbed(*(part.contiguous() for part in up_hxc.split((self.nope_dim, self.value_dim), dim=1)))
        if self._kept is not None:
            self._kept[names] = absorbed
        return absorbed


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
