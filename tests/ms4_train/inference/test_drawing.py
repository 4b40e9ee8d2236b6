"""Drawing against published generator outputs, softmax probabilities (chi-square), exact fractions, and transformers' filters."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ms4_train.inference.drawing import Draws, drawn, kept, mix64, sample_seed, stream_start, uniform, weight_bits, weights
from ms4_train.inference.sampling_params import SamplingParams

CPU = torch.device("cpu")
# First outputs of SplitMix64 from state 1234567, as published with its reference implementation's ports (Rosetta Code, "Splitmix64").
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
NO_IDS = torch.zeros(1, 0, dtype=torch.int64)
# A right sampler fails a test at this level once in 1,000 seeds; the seeds are fixed.
LEVEL = 1e-3


def draw_many(logits: list[float], count: int, **params: Any) -> Tensor:
    """``count`` tokens from the same logits with seeds 0 .. count - 1."""
    draws = Draws([SamplingParams(**params)] * count, range(count), CPU)
    return draws.draw(torch.tensor(logits).expand(count, -1), [0] * count)


def chance(tokens: Tensor, probability: Tensor) -> float:
    """How likely counts at least as odd as these are under ``probability``."""
    observed = torch.bincount(tokens, minlength=len(probability)).double()
    used = probability > 0
    assert observed[~used].sum() == 0, "an impossible token was drawn"
    return float(stats.chisquare(observed[used], (probability[used] / probability[used].sum()) * observed.sum()).pvalue)


def keep_one(weight: list[int] | Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
    double = torch.float64
    row = torch.as_tensor(weight)[None]
    left = kept(row, torch.tensor([top_k]), torch.tensor([top_p], dtype=double), torch.tensor([min_p], dtype=double))
    assert ((left == row) | (left == 0)).all()
    return set(left[0].nonzero()[:, 0].tolist())


def test_mix64_is_splitmix64() -> None:
    assert [mix64((1234567 + (step + 1) * 0x9E3779B97F4A7C15) % 2**64) for step in range(5)] == PUBLISHED


@pytest.mark.parametrize("axis", ["seed", "position", "sample"])
def test_uniform_numbers_are_uniform_and_uncorrelated(axis: str) -> None:
    count = 50_000
    if axis == "seed":
        value = torch.tensor([uniform(stream_start(seed), 3) for seed in range(count)], dtype=torch.float64)
    elif axis == "position":
        value = torch.tensor([uniform(stream_start(3), position) for position in range(count)], dtype=torch.float64)
    else:
        value = torch.tensor([uniform(stream_start(sample_seed(3, index)), 0) for index in range(count)], dtype=torch.float64)
    assert value.min() >= 0
    assert value.max() < 1
    assert stats.kstest(value.numpy(), "uniform").pvalue > LEVEL
    correlation = torch.corrcoef(torch.stack([value[:-1], value[1:]]))[0, 1].item()
    assert abs(correlation) < 3.3 / math.sqrt(count)


def test_the_largest_seed_and_far_positions_give_numbers_below_one() -> None:
    for seed, position in ((2**63 - 1, 2**40), (0, 2**62)):
        assert 0 <= uniform(stream_start(seed), position) < 1


def test_samples_have_seeds_of_their_own_and_the_first_has_the_requests() -> None:
    seeds = {sample_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(7, 0) == 7
    # Sample 1 must not repeat sample 0 some positions later.
    first = {uniform(stream_start(7), position) for position in range(1000)}
    assert not first & {uniform(stream_start(sample_seed(7, 1)), position) for position in range(1000)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_drawn_tokens_follow_the_softmax(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20)
    tokens = draw_many(logits.tolist(), 20_000, temperature=temperature)
    assert chance(tokens, torch.softmax(logits.double() / temperature, -1)) > LEVEL
    wrong = torch.softmax(logits.double() / (temperature * 1.15), -1)
    assert chance(tokens, wrong) < LEVEL, "the test cannot tell a wrong temperature"


@pytest.mark.parametrize("params", [{"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.7, "min_p": 0.05}])
def test_filtered_draws_follow_transformers_filtered_softmax(params: dict) -> None:
    torch.manual_seed(1)
    logits = torch.randn(20)
    left = logits[None].double()
    if "min_p" in params:
        left = MinPLogitsWarper(params["min_p"])(NO_IDS, left)
    if "top_k" in params:
        left = TopKLogitsWarper(params["top_k"])(NO_IDS, left)
    if "top_p" in params:
        left = TopPLogitsWarper(params["top_p"])(NO_IDS, left)
    tokens = draw_many(logits.tolist(), 20_000, temperature=1.0, **params)
    assert chance(tokens, torch.softmax(left[0], -1)) > LEVEL


@pytest.mark.parametrize("seed", range(20))
def test_kept_tokens_are_transformers(seed: int) -> None:
    """Random logits are far from every boundary compared with a weight's rounding (2^-49), so the sets are equal."""
    torch.manual_seed(seed)
    logits = torch.randn(1, 500, dtype=torch.float64) * 3
    weight = weights(logits)[0]
    top_k, top_p, min_p = 1 + 7 * seed, (0.03 + 0.048 * seed), 0.9**seed / 2
    everything = set(weight.nonzero()[:, 0].tolist())
    for own, warper in (
        (keep_one(weight, top_k=top_k), TopKLogitsWarper(top_k)),
        (keep_one(weight, top_p=top_p), TopPLogitsWarper(top_p)),
        (keep_one(weight, min_p=min_p), MinPLogitsWarper(min_p)),
    ):
        wanted = set((warper(NO_IDS, logits.clone())[0] > -math.inf).nonzero()[:, 0].tolist())
        assert own == wanted & everything
    chain = TopPLogitsWarper(top_p)(NO_IDS, TopKLogitsWarper(top_k)(NO_IDS, MinPLogitsWarper(min_p)(NO_IDS, logits.clone())))
    assert keep_one(weight, top_k, top_p, min_p) == set((chain[0] > -math.inf).nonzero()[:, 0].tolist())


def reference_nucleus(weight: list[int], top_p: Fraction) -> set[int]:
    """The smallest set of likeliest tokens with cumulative probability >= top_p, in exact rational arithmetic."""
    total = sum(weight)
    chosen: set[int] = set()
    mass = Fraction(0)
    for token in sorted(range(len(weight)), key=lambda token: (-weight[token], token)):
        if mass >= top_p:
            break
        chosen.add(token)
        mass += Fraction(weight[token], total)
    return chosen


def test_the_nucleus_is_exact_boundaries_and_ties_included() -> None:
    generator = torch.Generator().manual_seed(2)
    hits = ties = 0
    for _ in range(300):
        cuts = torch.sort(torch.randint(0, 257, (11,), generator=generator)).values.tolist()
        weight = [high - low for low, high in zip([0, *cuts], [*cuts, 256], strict=True)]
        share = int(torch.randint(1, 64, (1,), generator=generator))
        wanted = {token for token in reference_nucleus(weight, Fraction(share, 64)) if weight[token]}
        assert keep_one(weight, top_p=share / 64) == wanted
        hits += sum(weight[token] for token in wanted) * 64 == share * 256
        least = min(weight[token] for token in wanted)
        ties += weight.count(least) > sum(weight[token] == least for token in wanted)
    assert hits > 5, "no set reached its share exactly: the boundary was not tested"
    assert ties > 5, "no set left out an equally likely token"


def test_equally_likely_tokens_are_kept_by_id() -> None:
    assert keep_one([4, 8, 4, 4, 8, 4], top_k=4) == {0, 1, 2, 4}
    assert keep_one([1] * 10, top_k=3) == {0, 1, 2}
    assert keep_one([5] * 10, top_p=0.45) == {0, 1, 2, 3, 4}
    assert keep_one([8, 4, 4, 4], min_p=0.5) == {0, 1, 2, 3}, "min-p asks each token, so it need not choose"


def test_top_p_shares_what_top_k_left() -> None:
    # Of 8 + 4, 0.6 is reached by the first token alone; of all 16 it takes two.
    assert keep_one([8, 4, 2, 2], top_k=2, top_p=0.6) == {0}
    assert keep_one([8, 4, 2, 2], top_p=0.6) == {0, 1}


def test_filters_keep_the_likeliest_token_however_small_their_share() -> None:
    for params in ({"top_p": 1e-12}, {"top_k": 1}, {"min_p": 1.0}):
        assert draw_many([0.0, 3.0, 1.0], 100, temperature=1.0, **params).tolist() == [1] * 100


def test_weights_are_the_softmax_and_their_sum_fits() -> None:
    torch.manual_seed(4)
    logits = torch.randn(2, 131_072) * 4
    weight = weights(logits, torch.tensor([[0.7], [1.0]], dtype=torch.float64))
    wanted = torch.softmax(logits.double() / torch.tensor([[0.7], [1.0]], dtype=torch.float64), -1)
    # A weight is rounded by at most 2^-46 of the largest. So is each of 2^17 terms of the total: independent roundings add up to some
    # 2^-37 of it (7e-12).
    share = weight.double() / weight.sum(-1, keepdim=True).double()
    assert ((share - wanted).abs() <= 2.0**-46 * wanted.amax(-1, keepdim=True) + 2e-11 * wanted).all()
    for size in (1, 2, 3, 438, 131_072, 200_000):
        assert size * 2 ** weight_bits(size) <= 2**62


def test_a_very_low_temperature_is_greedy_and_does_not_overflow() -> None:
    assert draw_many([1e4, -1e4, 9999.0], 50, temperature=1e-300).tolist() == [0] * 50


def test_a_token_of_weight_zero_is_never_drawn() -> None:
    tokens = draw_many([-math.inf, 0.0, -math.inf, 0.0, -math.inf], 2000, temperature=1.0)
    assert set(tokens.tolist()) == {1, 3}
    edge = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64)
    assert drawn(torch.tensor([[0, 1, 0]] * 3), edge).tolist() == [1, 1, 1]


def test_many_rows_are_drawn_in_parts_and_as_alone() -> None:
    """Enough values for several passes; the filters' rows must go along with their logits."""
    torch.manual_seed(5)
    logits = torch.randn(30, 20_000)
    params = [SamplingParams(temperature=0.5 + 0.1 * row, top_p=0.1 + 0.02 * row, top_k=row) for row in range(30)]
    together = Draws(params, range(30), CPU).draw(logits, [5] * 30).tolist()
    alone = [Draws([params[row]], [row], CPU).draw(logits[row : row + 1], [5]).item() for row in range(30)]
    assert together == alone
