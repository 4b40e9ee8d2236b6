"""Multi-head latent attention (spec section 2.1), in two forms of the same function.

Expanded: keys and values of each head are computed from the latents; for fresh sequences. Absorbed: the up-projection of keys moves to the
query and that of values behind the softmax, so that attention runs over the cached latents themselves; for sequences that continue cached
ones. Head layout: q and k are [no position | rotary], rows of ``kv_b_proj`` per head are [key | value].
Exercise it: ``pytest tests/ms4_train/model/test_attention.py``.

Shape suffixes: t new tokens, d hidden, h heads, x head width (key: no position + rotary), n key width without position, v value width,
c latent (kv_lora_rank), p rotary lanes, m = c + p as cached; b sequences, q new tokens of the longest one, s positions of the longest one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ms4_kernels.attention import PackedDocuments, packed_attention
from ms4_train.model.cache import LatentCache
from ms4_train.model.config import TextConfig
from ms4_train.model.linear import Linear
from ms4_train.model.norm import RMSNorm
from ms4_train.model.plan import AttentionPlan, QueryGrid
from ms4_train.model.rope import apply_rotary, rotate_last_lanes

_LATENT_NORM_EPS = 1e-6  # transformers builds these two norms with its default, whatever rms_norm_eps says; the release has 1e-6 for both


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
        self._absorbed: tuple[Tensor, Tensor] | None = None

    def forward(self, hidden_td: Tensor, plan: AttentionPlan, cache: LatentCache | None) -> Tensor:
        """Attend within each sequence.

        Args:
            hidden_td: normalised tokens [T, d].
            plan: from the layout of the pass.
            cache: takes the new tokens' latents; must hold the earlier ones when a sequence continues.

        Returns:
            [T, d], after the output projection.
        """
        query_thx = self._queries(hidden_td, plan)
        latent_tm = self._latents(hidden_td, plan)
        if cache is not None:
            cache.append(self.layer, latent_tm, plan.layout)
        if plan.documents is not None:
            out_thv = self._attend_expanded(query_thx, latent_tm, plan.documents)
        else:
            assert plan.grid is not None
            if cache is None:
                raise ValueError("sequences that continue earlier tokens need the cache that holds them")
            out_thv = self._attend_absorbed(query_thx, cache.context(self.layer, plan.layout), plan.grid)
        return self.o_proj(out_thv.flatten(1))

    def prepare_decode(self) -> None:
        """Keep the absorbed matrices until :meth:`release_decode`. Call it again after the weights change."""
        with torch.no_grad():
            self._absorbed = self._absorbed_matrices()

    def release_decode(self) -> None:
        """Drop the kept matrices."""
        self._absorbed = None

    def _queries(self, hidden_td: Tensor, plan: AttentionPlan) -> Tensor:
        query_thx = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_td))).unflatten(-1, (self.num_heads, -1))
        query_thx = rotate_last_lanes(query_thx, plan.cos_tp, plan.signed_sin_tp)
        if plan.query_scale_t is not None:
            query_thx = query_thx * plan.query_scale_t[:, None, None].to(query_thx.dtype)
        return query_thx

    def _latents(self, hidden_td: Tensor, plan: AttentionPlan) -> Tensor:
        latent_tc, rope_tp = self.kv_a_proj_with_mqa(hidden_td).split((self.latent_rank, self.rope_dim), dim=-1)
        return torch.cat((self.kv_a_layernorm(latent_tc), apply_rotary(rope_tp, plan.cos_tp, plan.signed_sin_tp)), dim=-1)

    def _attend_expanded(self, query_thx: Tensor, latent_tm: Tensor, documents: PackedDocuments) -> Tensor:
        latent_tc, rope_tp = latent_tm.split((self.latent_rank, self.rope_dim), dim=-1)
        nope_thn, value_thv = self.kv_b_proj(latent_tc).unflatten(-1, (self.num_heads, -1)).split((self.nope_dim, self.value_dim), dim=-1)
        key_thx = torch.cat((nope_thn, rope_tp[:, None].expand(-1, self.num_heads, -1)), dim=-1)
        return packed_attention(query_thx, key_thx, value_thv, documents, scale=self.scale)

    def _attend_absorbed(self, query_thx: Tensor, context_bsm: Tensor, grid: QueryGrid) -> Tensor:
        key_up_hnc, value_up_hvc = self._absorbed or self._absorbed_matrices()
        nope_thn, rope_thp = query_thx.split((self.nope_dim, self.rope_dim), dim=-1)
        absorbed_thc = torch.bmm(nope_thn.transpose(0, 1), key_up_hnc).transpose(0, 1)
        query_thm = torch.cat((absorbed_thc, rope_thp), dim=-1)

        num_sequences, longest = grid.token_bq.shape
        query_brm = query_thm[grid.token_bq].view(num_sequences, longest * self.num_heads, -1)  # r = q * h rows of one sequence
        context_bsm = context_bsm.to(query_brm.dtype)
        scores_brs = torch.bmm(query_brm, context_bsm.transpose(1, 2)).to(torch.promote_types(query_brm.dtype, torch.float32))
        scores_bqhs = (scores_brs * self.scale).view(num_sequences, longest, self.num_heads, -1)
        probabilities_bqhs = scores_bqhs.masked_fill(grid.hidden_bqs[:, :, None], -torch.inf).softmax(dim=-1)
        probabilities_brs = probabilities_bqhs.flatten(1, 2).to(query_brm.dtype)

        mixed_brc = torch.bmm(probabilities_brs, context_bsm[..., : self.latent_rank])
        mixed_thc = mixed_brc.view(num_sequences * longest, self.num_heads, -1)[grid.cell_t]
        return torch.bmm(mixed_thc.transpose(0, 1), value_up_hvc.transpose(1, 2)).transpose(0, 1)

    def _absorbed_matrices(self) -> tuple[Tensor, Tensor]:
        """Return (key_up_hnc, value_up_hvc), read off the module's action on an identity, so that an adapter on it counts."""
        reference = self.kv_a_layernorm.weight  # not the projection's own: that may be quantised
        identity_cc = torch.eye(self.latent_rank, dtype=reference.dtype, device=reference.device)
        up_hxc = self.kv_b_proj(identity_cc).t().unflatten(0, (self.num_heads, -1))
        key_up_hnc, value_up_hvc = up_hxc.split((self.nope_dim, self.value_dim), dim=1)
        return key_up_hnc.contiguous(), value_up_hvc.contiguous()
