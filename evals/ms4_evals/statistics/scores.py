"""A score and how exactly it is known, with problems as the unit that is drawn from the world.

Samples of one problem resemble each other, so all uncertainty is clustered by problem: each problem counts with the mean of its samples.
Shape suffixes: p = problems, s = samples of a problem, b = bootstrap resamples,
q = quantities.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_scores.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_BOOTSTRAP_CELLS = 1 << 20
_SAME = 1e-12
"""Means of problems closer than this are equal: shares of at most 10,000 samples differ by 1e-8 or not at all, and rounding is 1e-16."""


@dataclass(frozen=True)
class Score:
    """The mean over problems.

    Attributes:
        value: in [0, 1].
        standard_error: clustered by problem; None for a single problem.
        standard_error_runs: standard error over sample indices (repeated runs over the same problems); None for a single sample.
        low, high: interval at the asked confidence.
    """

    value: float
    standard_error: float | None
    standard_error_runs: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference of two means over the same problems.

    Attributes:
        low, high: percentile bootstrap over problems, or the wider of what ``method`` names.
        method: ``bootstrap``; ``wilson`` where all problems have the same difference, so that resampling them says nothing.
        normal_low, normal_high: from the standard error and a normal distribution; None for a single problem.
    """

    value: float
    standard_error: float | None
    low: float
    high: float
    normal_low: float | None
    normal_high: float | None
    method: Literal["bootstrap", "wilson"] = "bootstrap"


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means over the same problems.

    Attributes:
        low, high: percentile bootstrap over problems; None for a single problem, and where a resample has nothing to divide by.
    """

    value: float
    low: float | None
    high: float | None


def standard_error(mean_p: Floats) -> float | None:
    """Standard error of the mean of problem means; exactly 0 where all are equal, None for fewer than two problems."""
    if len(mean_p) < 2:
        return None
    if np.ptp(mean_p) < _SAME:
        return 0.0  # rounding of the mean would leave some 1e-17, from which an interval of no width would follow
    return float(np.std(mean_p, ddof=1) / math.sqrt(len(mean_p)))


def score(correct_ps: Sequence[Sequence[bool]], confidence: float) -> Score:
    """The score of graded samples.

    The interval is Wilson's with an effective number of samples, p (1 - p) / SE^2, so that it respects the clusters, stays inside [0, 1],
    and does not shrink to a point when everything is right or everything wrong (then the number of problems takes its place).

    Args:
        correct_ps: for every problem, whether each of its samples is correct; no problem without samples.
        confidence: of the interval, e.g. 0.95.
    """
    mean_p = np.array([sum(samples) / len(samples) for samples in correct_ps], dtype=np.float64)
    value = float(np.mean(mean_p))
    error = standard_error(mean_p)
    variance = value * (1 - value)
    effective = variance / error**2 if error and variance > 0 else float(len(mean_p))
    low, high = wilson_interval(value, effective, confidence)
    return Score(value, error, _standard_error_of_runs(correct_ps), low, high)


def wilson_interval(share: float, count: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share observed in ``count`` (possibly fractional) independent trials (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # Rounding must not push a bound past the share itself: that of none right would start a hair above 0.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def paired_difference(first_p: Sequence[float], second_p: Sequence[float], *, confidence: float, resamples: int, seed: int) -> Difference:
    """first - second, paired by problem.

    Resampling problems carries the spread within problems along, because each problem's mean already contains it. The generator is
    seeded, so the interval is a function of its arguments.

    Args:
        first_p, second_p: mean of each problem's samples, in the same order of problems.
        confidence: of both intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    difference_p = np.array(first_p, dtype=np.float64) - np.array(second_p, dtype=np.float64)
    value = float(np.mean(difference_p))
    error = standard_error(difference_p)
    tail = (1 - confidence) / 2
    mean_b = bootstrap_means(difference_p, resamples, seed)
    low, high = (float(bound) for bound in np.quantile(mean_b, [tail, 1 - tail]))
    if not error:
        low, high = _square_and_add(float(np.mean(first_p)), float(np.mean(second_p)), len(difference_p), confidence)
        return Difference(value, error, low, high, None, None, "wilson")
    reach = NormalDist().inv_cdf(1 - tail) * error
    return Difference(value, error, low, high, value - reach, value + reach)


def _square_and_add(first: float, second: float, count: int, confidence: float) -> tuple[float, float]:
    """Newcombe's interval of first - second from the Wilson interval of each (Newcombe 1998, method 10 of unpaired shares).

    Where every problem has the same difference (all right in one mode, all wrong in the other) a bootstrap of the problems gives a point,
    as if nothing were left to chance. Leaving the pairing out is cautious: the modes' results on a problem hardly ever oppose each other.
    """
    value = first - second
    first_low, first_high = wilson_interval(first, count, confidence)
    second_low, second_high = wilson_interval(second, count, confidence)
    return value - math.hypot(first - first_low, second_high - second), value + math.hypot(first_high - first, second - second_low)


def paired_ratios(first_pq: Floats, second_pq: Floats, *, confidence: float, resamples: int, seed: int) -> list[Ratio]:
    """mean(first) / mean(second) for several quantities q, with numerators and denominators resampled together, problem by problem.

    Args:
        first_pq, second_pq: mean of each problem's samples, in the same order of problems; no column of the second is all zero.
        confidence: of the intervals.
        resamples, seed: of the bootstrap.
    """
    values = first_pq.mean(axis=0) / second_pq.mean(axis=0)
    count, quantities = first_pq.shape
    both_pq = np.concatenate([first_pq, second_pq], axis=1)
    parts = [weights_bp @ both_pq for weights_bp in _bootstrap_weights(count, resamples, seed)]
    sums_bq = np.concatenate(parts)
    tail = (1 - confidence) / 2
    ratios: list[Ratio] = []
    for quantity, value in enumerate(values):
        denominator_b = sums_bq[:, quantities + quantity]
        if count < 2 or not denominator_b.all():
            ratios.append(Ratio(float(value), None, None))
            continue
        low, high = (float(bound) for bound in np.quantile(sums_bq[:, quantity] / denominator_b, [tail, 1 - tail]))
        ratios.append(Ratio(float(value), low, high))
    return ratios


def _bootstrap_weights(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each problem is drawn, in the resamples that ``bootstrap_means`` makes of as many problems; some resamples at a time."""
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = max(1, _BOOTSTRAP_CELLS // count)
    for start in range(0, resamples, rows):
        height = min(rows, resamples - start)
        index_bp = generator.integers(0, count, size=(height, count)) + count * np.arange(height)[:, None]
        yield np.bincount(index_bp.ravel(), minlength=height * count).reshape(height, count).astype(np.float64)


def bootstrap_means(value_p: Floats, resamples: int, seed: int) -> Floats:
    """Means of ``resamples`` draws of all problems with replacement, in memory that does not grow with ``resamples``."""
    generator = np.random.Generator(np.random.PCG64(seed))
    count = len(value_p)
    rows = max(1, _BOOTSTRAP_CELLS // count)
    parts: list[Floats] = []
    for start in range(0, resamples, rows):
        index_bp = generator.integers(0, count, size=(min(rows, resamples - start), count))
        parts.append(value_p[index_bp].mean(axis=1))
    return np.concatenate(parts)


def _standard_error_of_runs(correct_ps: Sequence[Sequence[bool]]) -> float | None:
    """Spread of the score over sample indices: what repeating the run on the same problems would change."""
    runs = min(len(samples) for samples in correct_ps)
    if runs < 2:
        return None
    mean_s = np.mean(np.array([samples[:runs] for samples in correct_ps], dtype=np.float64), axis=0)
    return float(np.std(mean_s, ddof=1) / math.sqrt(runs))
