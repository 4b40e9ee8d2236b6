"""Inputs of latent attention: a pool whose blocks lie in no order, sequences at different places, and torch's own attention over them.

Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ms4_kernels.latent_attention import LatentPlan


class LatentCase(NamedTuple):
    """One call: ``query_thm``, ``pool_nsm``, ``plan``, ``scale`` and ``latent_rank``."""

    query_thm: Tensor
    pool_nsm: Tensor
    plan: LatentPlan
    scale: float
    latent_rank: int


def latent_case(
    starts: Sequence[int],
    lengths: Sequence[int],
    *,
    page: int = 16,
    heads: int = 4,
    latent: int = 16,
    rotary: int = 8,
    dtype: torch.dtype = torch.float32,
    pool_dtype: torch.dtype | None = None,
    spare: int = 2,
) -> LatentCase:
    """Random queries and latents. Blocks are shuffled; tables are ``spare`` blocks wider than need be, where they name no block; what no
    token was written to is NaN.
    """
    generator = torch.Generator().manual_seed(1)
    stops = [start + length for start, length in zip(starts, lengths, strict=True)]
    counts = [-(-stop // page) for stop in stops]
    pool_nsm = torch.full((sum(counts) + 3, page, latent + rotary), torch.nan)
    table_bj = torch.full((len(stops), max(counts) + spare), 10**6, dtype=torch.int32)
    order = (torch.randperm(sum(counts), generator=generator) + 2).tolist()
    for row, (stop, count) in enumerate(zip(stops, counts, strict=True)):
        blocks, order = order[:count], order[count:]
        table_bj[row, :count] = torch.tensor(blocks, dtype=torch.int32)
        for block, size in zip(blocks, [page] * (count - 1) + [stop - page * (count - 1)], strict=True):
            pool_nsm[block, :size] = torch.randn(size, latent + rotary, generator=generator)
    query_thm = torch.randn(sum(lengths), heads, latent + rotary, generator=generator).to(dtype)
    return LatentCase(
        query_thm, pool_nsm.to(pool_dtype or dtype), LatentPlan.of(table_bj, starts, lengths), (latent + rotary) ** -0.5, latent
    )


def torch_attention(case: LatentCase, dtype: torch.dtype) -> Tensor:
    """[T, h, c] by ``scaled_dot_product_attention`` over each sequence's latents, read block by block."""
    query_thm, pool_nsm, plan, scale, rank = case
    assert plan.starts is not None
    lengths = plan.lengths or (1,) * plan.num_tokens
    outs = []
    for row, (start, query_qhm) in enumerate(zip(plan.starts, query_thm.split(lengths), strict=True)):
        stop, page = start + query_qhm.shape[0], pool_nsm.shape[1]
        blocks = [pool_nsm[int(block)] for block in plan.tables_bj[row, : -(-stop // page)]]
        seen_pm = torch.cat([block.to(query_thm.dtype).to(dtype) for block in blocks])[:stop]
        mask_qp = torch.arange(stop) <= torch.arange(start, stop)[:, None]
        key_hpm = seen_pm.expand(query_thm.shape[1], -1, -1)
        out_hqc = F.scaled_dot_product_attention(query_qhm.transpose(0, 1).to(dtype), key_hpm, key_hpm[..., :rank], mask_qp, scale=scale)
        outs.append(out_hqc.transpose(0, 1))
    return torch.cat(outs)


def worse_than_torch(found: Tensor, case: LatentCase) -> bool:
    """Whether the error against fp64 is more than twice that of torch's attention in the type of the queries.

    One rounding of the result is allowed besides, for where torch happens to be exact.
    """
    assert found.dtype == case.query_thm.dtype
    truth = torch_attention(case, torch.float64)
    error, allowed = ((x.double() - truth).norm() for x in (found, torch_attention(case, case.query_thm.dtype)))
    return not error <= 2 * allowed + truth.norm() * torch.finfo(found.dtype).eps / 2
