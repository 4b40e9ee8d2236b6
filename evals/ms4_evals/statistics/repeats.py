"""What several samples of a problem are worth: pass@k and cons@k.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_repeats.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4 ... up to ``limit``, and ``limit`` itself."""
    powers = [1 << exponent for exponent in range(limit.bit_length()) if 1 << exponent <= limit]
    return powers if powers and powers[-1] == limit else [*powers, limit]


def pass_at_k(correct_ps: Sequence[Sequence[bool]], k: int) -> float:
    """Probability that at least one of ``k`` samples of a problem is correct, averaged over problems.

    The unbiased estimate 1 - C(n - c, k) / C(n, k) from n samples of which c are correct (Chen et al. 2021, equation 1).
    Every problem needs at least ``k`` samples.
    """
    total = 0.0
    for samples in correct_ps:
        count, right = len(samples), sum(samples)
        assert count >= k
        total += 1 - math.comb(count - right, k) / math.comb(count, k)
    return total / len(correct_ps)


def consensus_at_k(votes_ps: Sequence[Sequence[tuple[str | None, bool]]], k: int) -> float:
    """Share of problems whose most frequent answer among ``k`` samples is correct.

    Samples without an answer do not vote. A tie counts with the share of the tied answers that are correct. With more than ``k`` samples
    the mean over the disjoint groups of ``k`` in order of their index is taken; a rest smaller than ``k`` is left out.

    Args:
        votes_ps: for every problem, each sample's (extracted answer or None, whether it is correct).
        k: samples per vote; every problem needs at least as many.
    """
    total = 0.0
    for samples in votes_ps:
        groups = [samples[start : start + k] for start in range(0, len(samples) - k + 1, k)]
        assert groups
        total += sum(_vote(group) for group in groups) / len(groups)
    return total / len(votes_ps)


def _vote(group: Sequence[tuple[str | None, bool]]) -> float:
    ballots = Counter(answer for answer, _ in group if answer is not None)
    if not ballots:
        return 0.0
    most = max(ballots.values())
    winners = {answer for answer, count in ballots.items() if count == most}
    right = {answer for answer, is_correct in group if is_correct}
    return len(winners & right) / len(winners)
