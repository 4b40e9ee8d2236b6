"""Latent attention on a CUDA device: errors beside torch's at the release's sizes, fixed orders to the bit, replay from a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.gpu import DEVICE, needs_gpu
from support.latent_rows import LatentCase, latent_case, worse_than_torch

from ms4_kernels.latent_attention import LatentPlan, latent_attention, write_latents

pytestmark = needs_gpu
RELEASE: dict[str, Any] = {"heads": 32, "latent": 256, "rotary": 64}


def attend(case: LatentCase, num_splits: int | None = None) -> torch.Tensor:
    plan = case.plan
    starts, lengths = plan.starts, plan.lengths or (1,) * plan.num_tokens
    assert starts is not None
    there = LatentPlan.of(plan.tables_bj.to(DEVICE), starts, lengths)
    query_thm, pool_nsm = case.query_thm.to(DEVICE), case.pool_nsm.to(DEVICE)
    return latent_attention(query_thm, pool_nsm, there, scale=case.scale, latent_rank=case.latent_rank, num_splits=num_splits).cpu()


@pytest.mark.parametrize(
    ("dtype", "pool_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float8_e4m3fn),
        (torch.float32, torch.float8_e4m3fn),
    ],
)
@pytest.mark.parametrize("num_splits", [None, 1, 4])
def test_error_at_most_twice_that_of_torch(dtype, pool_dtype, num_splits):
    for starts, lengths in (([0, 31, 900, 3000], [1] * 4), ([0, 700, 5], [40, 9, 1])):
        case = latent_case(starts, lengths, page=32, dtype=dtype, pool_dtype=pool_dtype, **RELEASE)
        assert not worse_than_torch(attend(case, num_splits), case)


def test_with_a_fixed_number_of_splits_a_token_stands_alone():
    case = latent_case([2000, 5, 900], [4, 1, 1], page=32, dtype=torch.bfloat16, **RELEASE)
    together = attend(case, 4)
    for token in range(4):
        plan = LatentPlan.of(case.plan.tables_bj[:1], [2000 + token], [1])
        assert torch.equal(attend(case._replace(query_thm=case.query_thm[token : token + 1], plan=plan), 4)[0], together[token])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_decoding_replays_from_a_graph(dtype):
    """Recorded with one batch, replayed with another: other tables, other positions, a padded row."""
    case = latent_case([40, 700, 3], [1, 1, 1], page=32, dtype=torch.bfloat16, pool_dtype=dtype, **RELEASE)
    pool_nsm, query_thm, latent_tm = case.pool_nsm.to(DEVICE), case.query_thm.to(DEVICE), torch.randn(3, 320).bfloat16().to(DEVICE)
    tables_bj, position_b = torch.zeros_like(case.plan.tables_bj).to(DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)

    def step() -> torch.Tensor:
        plan = LatentPlan.decode(tables_bj, position_b)
        write_latents(pool_nsm, latent_tm, plan.slots(32))
        return latent_attention(query_thm, pool_nsm, plan, scale=case.scale, latent_rank=256)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found_thc = step()
    for positions in ([40, 700, 3], [20, -1, 0]):
        tables_bj.copy_(case.plan.tables_bj)
        position_b.copy_(torch.tensor(positions))
        graph.replay()
        replayed = found_thc.clone()
        assert torch.equal(replayed, step())
        assert replayed.isfinite().all()
        assert not replayed[torch.tensor(positions) < 0].any()
