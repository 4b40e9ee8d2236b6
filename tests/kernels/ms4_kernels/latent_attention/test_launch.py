"""Tiles and numbers of splits: from sizes alone, fixed where asked for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from support.latent_rows import latent_case
from support.triton_interpreter import interpreted

from ms4_kernels.invariant.switch import switched_on
from ms4_kernels.latent_attention import LatentPlan, latent_attention, launch


@pytest.mark.parametrize(
    ("tokens", "context", "splits"), [(1, 100, 1), (1, 4096, 16), (1, 262144, 64), (32, 262144, 8), (132, 262144, 2), (4096, 262144, 1)]
)
def test_enough_programs_fill_the_device(tokens, context, splits):
    """Two for each of 132 multiprocessors, where splits of 256 positions allow it."""
    assert launch.choose_splits(tokens, context, None, 132) == splits


def test_a_fixed_number_is_the_same_for_all_calls():
    calls = [(tokens, context) for tokens in (1, 7, 5000) for context in (1, 300, 262144)]
    assert {launch.choose_splits(tokens, context, 3, 132) for tokens, context in calls} == {3}
    with switched_on():
        assert {launch.choose_splits(tokens, context, None, 132) for tokens, context in calls} == {launch.INVARIANT_SPLITS}
    assert len({launch.choose_splits(tokens, context, None, 132) for tokens, context in calls}) > 1


@pytest.mark.parametrize("heads", [1, 8, 32, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_have_sizes_that_the_compiler_takes(heads, dtype):
    constants = launch.attend_constants(launch.attend_tile(heads, dtype), heads, 20, 24, 16, dtype)
    for name in ("BLOCK_S", "BLOCK_R", "BLOCK_C", "BLOCK_P"):
        assert constants[name] >= 16
        assert constants[name].bit_count() == 1


def test_no_tokens_need_no_launch():
    case = latent_case([3], [1])
    nothing_t = torch.empty(0, dtype=torch.int32)
    plan = LatentPlan(case.plan.tables_bj, nothing_t, nothing_t)
    with interpreted() as launches:
        found = latent_attention(case.query_thm[:0], case.pool_nsm, plan, scale=1.0, latent_rank=16)
    assert found.shape == (0, 4, 16)
    assert not launches


def test_more_heads_than_a_program_takes_go_to_torch():
    case = latent_case([3], [1], heads=40)
    with interpreted() as launches:
        latent_attention(case.query_thm, case.pool_nsm, case.plan, scale=1.0, latent_rank=16)
    assert not launches
