"""What the entrance refuses and whom it picks."""

from __future__ import annotations

import pytest
import torch
from support.latent_rows import latent_case

from ms4_kernels.latent_attention import LatentPlan, latent_attention, write_latents


def call(case, **changes):
    arguments = {"scale": case.scale, "latent_rank": case.latent_rank} | changes
    query_thm, pool_nsm, plan = (arguments.pop(name, getattr(case, name)) for name in ("query_thm", "pool_nsm", "plan"))
    return latent_attention(query_thm, pool_nsm, plan, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_thm": torch.zeros(4, 24)}, r"not \[T, h, m\]"),
        ({"query_thm": torch.zeros(4, 4, 25)}, r"not \[T, h, m\]"),
        ({"query_thm": torch.zeros(5, 4, 24)}, "5 queries, but a plan of 4 tokens"),
        ({"latent_rank": 25}, "latent_rank 25"),
        ({"latent_rank": 0}, "latent_rank 0"),
        ({"num_splits": 0}, "at least 1"),
        ({"pool_nsm": torch.zeros(4, 16, 24, dtype=torch.int8)}, "the pool is torch.int8"),
        ({"pool_nsm": torch.zeros(4, 24, 16).transpose(1, 2)}, "contiguous"),
        ({"backend": "flash"}, "unknown latent attention backend"),
        ({"backend": "triton"}, "no Triton kernel"),
        (
            {"plan": LatentPlan.decode(torch.zeros(4, 2, dtype=torch.int32, device="meta"), torch.zeros(4, device="meta"))},
            "several devices",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    case = latent_case([3, 4], [1, 3])
    with pytest.raises(ValueError, match=message):
        call(case, **changes)


@pytest.mark.parametrize(
    ("pool", "latent", "slot", "message"),
    [
        (torch.zeros(2, 16, 8), torch.zeros(3, 8), torch.zeros(2, dtype=torch.int64), "do not fit"),
        (torch.zeros(2, 16, 8), torch.zeros(3, 9), torch.zeros(3, dtype=torch.int64), "do not fit"),
        (torch.zeros(2, 8, 16).transpose(1, 2), torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64), "do not fit"),
        (torch.zeros(2, 16, 8), torch.zeros(3, 8), torch.zeros(3, dtype=torch.int32), "expected int64"),
    ],
)
def test_latents_that_do_not_fit_are_refused(pool, latent, slot, message):
    with pytest.raises(ValueError, match=message):
        write_latents(pool, latent, slot)


def test_a_cpu_takes_torch():
    case = latent_case([3, 4], [1, 3])
    assert torch.equal(call(case), call(case, backend="cpu"))
