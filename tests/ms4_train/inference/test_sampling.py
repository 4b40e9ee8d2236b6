"""Sampling against plain references: published generator outputs, softmax probabilities, a nucleus built in pure Python."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch

from ms4_train.inference.request import SamplingParams
from ms4_train.inference.sampling import NOT_FINITE, BatchSampler, mix64, nucleus, uniform

CPU = torch.device("cpu")
# First outputs of SplitMix64 from state 1234567, as published with its reference implementation's ports (Rosetta Code, "Splitmix64").
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def sample_many(logits: list[float], count: int, **params: Any) -> torch.Tensor:
    """``count`` tokens from the same logits with seeds 0 .. count - 1."""
    sampler = BatchSampler([SamplingParams(seed=seed, **params) for seed in range(count)], CPU, len(logits))
    return sampler.sample(torch.tensor(logits).expand(count, -1), [0] * count)


def chi_square(observed: torch.Tensor, probability: torch.Tensor) -> tuple[float, float]:
    """Pearson's statistic and its 99.9 % quantile by Wilson and Hilferty's approximation."""
    expected = probability * observed.sum()
    used = expected > 0
    statistic = ((observed - expected)[used] ** 2 / expected[used]).sum().item()
    freedom = int(used.sum()) - 1
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic, quantile


def test_mix64_is_splitmix64() -> None:
    increment = 0x9E3779B97F4A7C15
    states = [(1234567 + (step + 1) * increment) % 2**64 for step in range(5)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    assert [value % 2**64 for value in mix64(signed).tolist()] == PUBLISHED


@pytest.mark.parametrize("axis", ["seed", "position"])
def test_uniform_numbers_are_uniform_and_uncorrelated_along_seeds_and_positions(axis: str) -> None:
    count = 100_000
    counter = torch.arange(count)
    fixed = torch.full((count,), 3)
    value = uniform(counter, fixed) if axis == "seed" else uniform(fixed, counter)
    assert value.min() >= 0
    assert value.max() < 1
    statistic, quantile = chi_square(torch.histc(value, 100, 0, 1), torch.full((100,), 0.01, dtype=torch.float64))
    assert statistic < quantile
    correlation = torch.corrcoef(torch.stack([value[:-1], value[1:]]))[0, 1].item()
    assert abs(correlation) < 3.3 / math.sqrt(count)


def test_uniform_of_the_largest_seed_and_far_positions_is_a_number_below_one() -> None:
    value = uniform(torch.tensor([2**63 - 1, 0]), torch.tensor([2**40, 2**62]))
    assert ((value >= 0) & (value < 1)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_tokens_follow_the_softmax(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(20)
    tokens = sample_many(logits.tolist(), 40_000, temperature=temperature)
    probability = torch.softmax(logits.double() / temperature, -1)
    statistic, quantile = chi_square(torch.bincount(tokens, minlength=20).double(), probability)
    assert statistic < quantile
    wrong, quantile = chi_square(torch.bincount(tokens, minlength=20).double(), torch.softmax(logits.double() / (temperature * 1.1), -1))
    assert wrong > quantile, "the test cannot tell a wrong temperature"


def test_nucleus_sampling_follows_the_renormalised_nucleus() -> None:
    torch.manual_seed(1)
    logits = torch.randn(20)
    probability = torch.softmax(logits.double(), -1)
    kept, token = nucleus(probability[None], torch.tensor([0.8], dtype=torch.float64))
    wanted = torch.zeros(20, dtype=torch.float64).scatter(0, token[0], kept[0])
    tokens = sample_many(logits.tolist(), 40_000, temperature=1.0, top_p=0.8)
    observed = torch.bincount(tokens, minlength=20).double()
    assert observed[wanted == 0].sum() == 0
    statistic, quantile = chi_square(observed, wanted / wanted.sum())
    assert statistic < quantile


def reference_nucleus(weights: list[int], top_p: Fraction) -> set[int]:
    """The smallest set of likeliest tokens with cumulative probability >= top_p, in exact rational arithmetic."""
    total = sum(weights)
    chosen: set[int] = set()
    mass = Fraction(0)
    for token in sorted(range(len(weights)), key=lambda token: (-weights[token], token)):
        if mass >= top_p:
            break
        chosen.add(token)
        mass += Fraction(weights[token], total)
    return chosen


def test_the_nucleus_is_exact() -> None:
    """Weights are multiples of 1/256 and shares of 1/64, so double precision holds every sum exactly, boundaries and ties included."""
    generator = torch.Generator().manual_seed(2)
    hits = 0
    for _ in range(200):
        cuts = torch.sort(torch.randint(0, 257, (11,), generator=generator)).values.tolist()
        weights = [high - low for low, high in zip([0, *cuts], [*cuts, 256], strict=True)]
        share = int(torch.randint(1, 64, (1,), generator=generator))
        kept, token = nucleus(torch.tensor([weights], dtype=torch.float64) / 256, torch.tensor([share / 64], dtype=torch.float64))
        got = set(token[kept > 0].tolist())
        wanted = {chosen for chosen in reference_nucleus(weights, Fraction(share, 64)) if weights[chosen]}
        assert got == wanted
        hits += sum(weights[chosen] for chosen in wanted) * 64 == share * 256
    assert hits > 5, "no set reached its share exactly: the boundary was not tested"


def test_a_nucleus_keeps_the_likeliest_token_however_small_its_share() -> None:
    tokens = sample_many([0.0, 3.0, 1.0], 200, temperature=1.0, top_p=1e-12)
    assert tokens.tolist() == [1] * 200


def test_greedy_takes_the_highest_logit_and_the_lower_id_on_a_tie() -> None:
    sampler = BatchSampler([SamplingParams()] * 3, CPU, 4)
    logits = torch.tensor([[0.0, 5.0, 5.0, 1.0], [7.0, 1.0, 2.0, 7.0], [-1.0, -2.0, -3.0, -0.5]])
    assert sampler.sample(logits, [0, 0, 0]).tolist() == [1, 0, 3]


def test_a_very_low_temperature_is_greedy_and_does_not_overflow() -> None:
    assert sample_many([1e4, -1e4, 9999.0], 50, temperature=1e-300).tolist() == [0] * 50


def test_a_row_does_not_depend_on_its_place_its_neighbours_or_their_kind() -> None:
    torch.manual_seed(3)
    logits = torch.randn(24, 300)
    kinds: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.7}, {"temperature": 1.0, "top_p": 0.9}]
    params = [SamplingParams(seed=row, **kinds[row % 3]) for row in range(24)]
    positions = [row * 7 for row in range(24)]
    alone = [BatchSampler([params[row]], CPU, 300).sample(logits[row : row + 1], [positions[row]]).item() for row in range(24)]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(4)).tolist()
    for rows in (list(range(24)), order, order[:5]):
        sampler = BatchSampler([params[row] for row in rows], CPU, 300)
        assert sampler.sample(logits[rows], [positions[row] for row in rows]).tolist() == [alone[row] for row in rows]
    moved = BatchSampler(params, CPU, 300).sample(logits, [position + 1 for position in positions]).tolist()
    assert moved != alone, "the position plays no part"


def test_tokens_beyond_the_vocabulary_are_never_chosen() -> None:
    logits = torch.tensor([[0.0, 1.0, 50.0, 60.0]]).expand(30, -1)
    params = [SamplingParams(temperature=temperature, seed=seed) for seed in range(10) for temperature in (0.0, 1.0, 100.0)]
    assert set(BatchSampler(params, CPU, 2).sample(logits, [0] * 30).tolist()) == {0, 1}


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_reported_for_their_row_alone(params: dict, value: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 4] = value
    tokens = BatchSampler([SamplingParams(**params)] * 3, CPU, 5).sample(logits, [0, 0, 0]).tolist()
    assert tokens[1] == NOT_FINITE
    assert min(tokens[0], tokens[2]) >= 0


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    tokens = sample_many([-math.inf, 0.0, -math.inf, 0.0, -math.inf], 2000, temperature=1.0)
    assert set(tokens.tolist()) == {1, 3}
