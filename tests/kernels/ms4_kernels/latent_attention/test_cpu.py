"""Plain torch beside torch's own attention, token by token in the batch-invariant mode, and what is written to the cache."""

from __future__ import annotations

import pytest
import torch
from support.latent_rows import latent_case, torch_attention, worse_than_torch

from ms4_kernels.invariant.switch import switched_on
from ms4_kernels.latent_attention import LatentPlan, cpu, latent_attention, write_latents

TYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float8_e4m3fn),
    (torch.float32, torch.bfloat16),
]
IDS = ["fp32", "bf16", "bf16-fp8", "fp32-bf16"]
BATCHES = {"decode": ([0, 31, 32, 33, 100], [1] * 5), "chunks": ([0, 30, 7, 64], [33, 1, 40, 16])}


def attend(case):
    return latent_attention(case.query_thm, case.pool_nsm, case.plan, scale=case.scale, latent_rank=case.latent_rank, backend="cpu")


@pytest.mark.parametrize(("dtype", "pool_dtype"), TYPES, ids=IDS)
@pytest.mark.parametrize("page", [16, 32, 64])
@pytest.mark.parametrize("batch", BATCHES)
def test_error_at_most_twice_that_of_torch(batch, page, dtype, pool_dtype):
    """Unwritten places of the pool hold NaN, and tables end in blocks that do not exist: neither shows."""
    case = latent_case(*BATCHES[batch], page=page, dtype=dtype, pool_dtype=pool_dtype)
    assert not worse_than_torch(attend(case), case)
    with switched_on():
        assert not worse_than_torch(attend(case), case)


@pytest.mark.parametrize("batch", BATCHES)
def test_fp64_agrees_with_torch(batch):
    case = latent_case(*BATCHES[batch], dtype=torch.float64)
    # Sums of at most 101 terms of about one, each of which rounds by 2^-53.
    torch.testing.assert_close(attend(case), torch_attention(case, torch.float64), rtol=0, atol=1e-13)


def test_long_chunks_go_in_parts(monkeypatch):
    case = latent_case([10, 0], [50, 3])
    whole = attend(case)
    monkeypatch.setattr(cpu, "_MOST_SCORES", 1000)
    assert not worse_than_torch(attend(case), case)
    # Products of other sizes may add in another order.
    torch.testing.assert_close(attend(case), whole, rtol=1e-5, atol=1e-6)


def test_padding_gives_zeros():
    case = latent_case([31, 6, 40], [1, 1, 1])
    padded = case._replace(plan=LatentPlan.decode(case.plan.tables_bj, torch.tensor([31, -1, 40])))
    for found in (attend(padded), _in_mode(padded)):
        assert not found[1].any()
        torch.testing.assert_close(found[[0, 2]], attend(case)[[0, 2]], rtol=1e-5, atol=1e-6)


def _in_mode(case):
    with switched_on():
        return attend(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_is_written_where_its_slot_says(dtype):
    pool_nsm, latent_tm = torch.zeros(4, 16, 24, dtype=dtype), torch.randn(3, 24)
    write_latents(pool_nsm, latent_tm, torch.tensor([17, -1, 63]))
    assert torch.equal(pool_nsm[1, 1], latent_tm[0].to(dtype))
    assert torch.equal(pool_nsm[3, 15], latent_tm[2].to(dtype))
    assert int((pool_nsm != 0).any(-1).sum()) == 2


def test_e4m3_clips_and_keeps_nan():
    pool_nsm = torch.zeros(2, 16, 8, dtype=torch.float8_e4m3fn)
    values = torch.tensor([[500.0, -1e9, 448.0, 449.0, 0.3, float("inf"), float("nan"), -0.0]])
    write_latents(pool_nsm, values, torch.tensor([18]))
    found = pool_nsm[1, 2].float()
    assert found[:6].tolist() == [448.0, -448.0, 448.0, 448.0, 0.3125, 448.0]
    assert found[6].isnan()
