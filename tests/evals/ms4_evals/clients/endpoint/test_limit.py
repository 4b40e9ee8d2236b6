"""The adaptive limit against simulated servers whose capacity is known."""

from __future__ import annotations

import random

import pytest

from ms4_evals.clients.endpoint.limit import AdaptiveLimit


def run(limit: AdaptiveLimit, capacity: int, rounds: int, chance: float = 0.0, seed: int = 0) -> tuple[list[int], float]:
    """Fill the limit, let the server push back what is above its capacity (and others by chance); limits, and share pushed back."""
    drawn = random.Random(seed)
    limits, pushed, sent = [], 0, 0
    for _ in range(rounds):
        turns = [limit.round for _ in range(limit.value)]
        limits.append(len(turns))
        for number, turn in enumerate(turns):
            sent += 1
            if number >= capacity or drawn.random() < chance:
                pushed += 1
                limit.pushed_back(turn)
            else:
                limit.succeeded(turn)
    return limits, pushed / sent


@pytest.mark.parametrize("capacity", [1, 3, 10, 40])
def test_settles_near_the_capacity_of_the_server(capacity):
    limit = AdaptiveLimit(64)
    limits, _ = run(limit, capacity, 200)
    settled = limits[100:]
    # Down by half when a tenth, two at least, is too many: between half the capacity and a step (an eighth, one at least) above that.
    assert max(settled) <= max(capacity * 1.1 * 1.125, capacity + 2) + 1
    assert sum(settled) / len(settled) >= min(capacity * 0.5, capacity - 1)
    _, share = run(limit, capacity, 100)
    # Every attempt to grow costs two at least.
    assert share < 0.2


def test_single_failures_do_not_slow_it_down():
    limit = AdaptiveLimit(64)
    limits, _ = run(limit, 10**6, 300, chance=0.02)
    # 2 % of 64 is 1.3 a round; it takes 7 to halve.
    assert sum(limits) / len(limits) > 55


def test_down_to_one_and_back_to_the_ceiling():
    limit = AdaptiveLimit(64)
    run(limit, 0, 20)
    assert limit.value == 1
    run(limit, 64, 80)
    assert limit.value == 64


def test_what_was_sent_before_a_change_counts_once():
    limit = AdaptiveLimit(64)
    turns = [limit.round for _ in range(64)]
    for turn in turns:
        limit.pushed_back(turn)
    # All 64 were too many at one moment; that halves it once, not until nothing is left.
    assert limit.value == 32


def test_a_ceiling_of_one_stays_one():
    limit = AdaptiveLimit(1)
    run(limit, 1, 5)
    run(limit, 0, 5)
    assert limit.value == 1
