"""Absorbed attention as the formula says, one token after another, in the type of the queries: fp64 for fp64.

Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention/test_reference.py``.

Shape suffixes: t new tokens, h heads, m latent and rotary key, c latent; n blocks, s tokens of a block; p positions seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ms4_kernels.latent_attention.plan import LatentPlan


def attend_reference(query_thm: Tensor, pool_nsm: Tensor, plan: LatentPlan, scale: float, latent_rank: int) -> Tensor:
    """Return [T, h, c]; arguments as those of :func:`ms4_kernels.latent_attention.latent_attention`."""
    block_size = pool_nsm.shape[1]
    mixed_thc = query_thm.new_zeros(*query_thm.shape[:2], latent_rank)
    for token, (sequence, position) in enumerate(zip(plan.sequence_t.tolist(), plan.position_t.tolist(), strict=True)):
        if position < 0:
            continue
        places_p = torch.arange(position + 1, device=pool_nsm.device)
        blocks_p = plan.tables_bj[sequence].long()[places_p // block_size]
        seen_pm = pool_nsm[blocks_p, places_p % block_size].to(query_thm.dtype)
        weights_hp = (query_thm[token] @ seen_pm.t() * scale).softmax(dim=-1)
        mixed_thc[token] = weights_hp @ seen_pm[:, :latent_rank]
    return mixed_thc
