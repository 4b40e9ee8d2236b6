"""Lengths of thinking and of final answers, in characters and in tokens.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_lengths.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LengthSummary:
    """Length of one part of the samples.

    Attributes:
        mean_low, mean_high: interval of the mean, clustered by problem; equal to the mean for a single problem.
    """

    mean: float
    median: float
    p90: float
    maximum: int
    mean_low: float
    mean_high: float


def summarise_lengths(length_ps: Sequence[Sequence[int]], *, z: float = 1.959963984540054) -> LengthSummary | None:
    """Summary over all samples; None without any.

    The 90th percentile is the smallest length that at least 90 % of the samples do not exceed, so it is the length of a real sample.

    Args:
        length_ps: lengths of each problem's samples; problems without samples are passed over.
        z: half-width of the mean's interval in standard errors.
    """
    groups = [samples for samples in length_ps if samples]
    if not groups:
        return None
    ordered = sorted(length for samples in groups for length in samples)
    mean = sum(ordered) / len(ordered)
    mean_p = np.array([sum(samples) / len(samples) for samples in groups], dtype=np.float64)
    reach = z * float(np.std(mean_p, ddof=1)) / math.sqrt(len(groups)) if len(groups) > 1 else 0.0
    return LengthSummary(
        mean=mean,
        median=float(np.median(ordered)),
        p90=float(ordered[math.ceil(0.9 * len(ordered)) - 1]),
        maximum=ordered[-1],
        mean_low=max(0.0, mean - reach),
        mean_high=mean + reach,
    )
