"""The reference beside torch's own attention in fp64, from which it may differ by the rounding of fp64."""

from __future__ import annotations

import torch
from support.latent_rows import latent_case, torch_attention

from ms4_kernels.latent_attention import LatentPlan, latent_attention


def test_agrees_with_torch():
    case = latent_case([0, 30, 7, 100], [5, 1, 40, 3], dtype=torch.float64)
    query_thm, pool_nsm, plan, scale, rank = case
    found_thc = latent_attention(query_thm, pool_nsm, plan, scale=scale, latent_rank=rank, backend="reference")
    # Sums of at most 103 terms of about one, each of which rounds by 2^-53.
    torch.testing.assert_close(found_thc, torch_attention(case, torch.float64), rtol=0, atol=1e-13)


def test_padding_gives_zeros():
    query_thm, pool_nsm, plan, scale, rank = latent_case([4, 6], [1, 1])
    padded = LatentPlan.decode(plan.tables_bj, torch.tensor([4, -1]))
    found_thc = latent_attention(query_thm, pool_nsm, padded, scale=scale, latent_rank=rank, backend="reference")
    assert not found_thc[1].any()
    assert found_thc[0].any()
