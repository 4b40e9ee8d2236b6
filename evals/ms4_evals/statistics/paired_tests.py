"""Exact tests of whether two sets of answers to the same problems differ: McNemar's, and its extension to several samples per problem.

Problems are the unit of both, because samples of one problem resemble each other and a test that takes them for independent promises too
much. Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_paired_tests.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_MAX_CELLS = 500_000_000
"""Sums times problems that ``sign_flip_p`` may go through: less than a second. 1,055 problems of 16 samples are 36 million."""


@dataclass(frozen=True)
class McNemar:
    """Problems by who solved them, with the exact two-sided test of equal chances (McNemar 1947, in its binomial form).

    Attributes:
        first_only, second_only: solved by one and not by the other; the test looks at these alone.
        p_value: probability, were both equally good, of a split at least as uneven; 1 where they never differ.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    p_value: float


def mcnemar(first_p: Sequence[bool], second_p: Sequence[bool]) -> McNemar:
    """The test on pairs of outcomes that are independent of each other: one pair per problem.

    Args:
        first_p, second_p: whether each problem was solved, in the same order of problems.
    """
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for pair in zip(first_p, second_p, strict=True):
        counts[pair] += 1
    first_only, second_only = counts[True, False], counts[False, True]
    return McNemar(counts[True, True], first_only, second_only, counts[False, False], binomial_p(first_only, second_only))


def binomial_p(first_only: int, second_only: int) -> float:
    """Two-sided exact p-value of a split of fair coin tosses; integers until the last division, so that no count is too large."""
    tosses = first_only + second_only
    tail = sum(math.comb(tosses, count) for count in range(min(first_only, second_only) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**tosses)))


def sign_flip_p(difference_p: Sequence[Fraction]) -> float | None:
    """Two-sided exact p-value of a sum of differences, were each as likely to have the other sign (Fisher's randomisation test).

    With one sample per problem the differences are -1, 0 and 1, and this is McNemar's exact test; with several it uses them all and still
    asks nothing of samples of one problem. The whole distribution of the sum is built by adding one problem at a time.

    Args:
        difference_p: first - second per problem, as exact fractions.

    Returns:
        None where the fractions have so many denominators (samples left out) that the distribution would be too large.
    """
    scale = math.lcm(*(difference.denominator for difference in difference_p)) if difference_p else 1
    steps = [abs(int(difference * scale)) for difference in difference_p if difference]
    reach = sum(steps)
    if (2 * reach + 1) * len(steps) > _MAX_CELLS:
        return None
    observed = abs(int(sum(difference_p, Fraction(0)) * scale))
    # chance[reach + s] is the probability of the sum s.
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    covered = 0
    for step in sorted(steps):
        middle = chance[reach - covered : reach + covered + 1] / 2
        covered += step
        chance[reach - covered : reach + covered + 1] = 0.0
        chance[reach - covered : reach - covered + len(middle)] += middle
        chance[reach + covered + 1 - len(middle) : reach + covered + 1] += middle
    if observed == 0:
        return 1.0
    # Both tails are equal; the far one is summed, not its complement, so that tiny values keep their digits.
    return float(min(1.0, 2.0 * chance[reach + observed :].sum()))
