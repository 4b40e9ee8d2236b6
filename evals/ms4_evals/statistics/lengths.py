"""Lengths of thinking and of final answers, in characters and in tokens.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_lengths.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ms4_evals.store.records import GradedSample

LENGTHS: dict[str, Callable[[GradedSample], int | None]] = {
    "thinking_chars": lambda sample: sample.thinking_chars,
    "answer_chars": lambda sample: sample.answer_chars,
    "total_chars": lambda sample: sample.thinking_chars + sample.answer_chars,
    "thinking_tokens": lambda sample: sample.thinking_tokens,
    "answer_tokens": lambda sample: sample.answer_tokens,
    "total_tokens": lambda sample: sample.thinking_tokens + sample.answer_tokens,
    "usage_tokens": lambda sample: sample.usage_tokens,
    "usage_thinking_tokens": lambda sample: sample.usage_thinking_tokens,
    "prompt_tokens": lambda sample: sample.prompt_tokens,
}
"""What is measured. ``thinking_tokens``, ``answer_tokens`` and ``total_tokens`` are counted with the one tokenizer that all models share;
``usage_*`` and ``prompt_tokens`` as the model's own server or engine counts, None where it does not say."""

GROUPS = ("all", "correct", "not_correct")


@dataclass(frozen=True)
class LengthSummary:
    """Length of one part of the samples.

    Attributes:
        count: samples that it is made of: those whose length is known.
        mean_low, mean_high: interval of the mean, clustered by problem; equal to the mean for a single problem.
    """

    count: int
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
    # Of a ratio, total length over number of samples (Cochran 1977, equation 6.13): problems may have different numbers of samples here.
    surplus_p = np.array([sum(samples) - mean * len(samples) for samples in groups], dtype=np.float64)
    count = len(groups)
    reach = z * math.sqrt(count / (count - 1) * float(np.sum(surplus_p**2))) / len(ordered) if count > 1 else 0.0
    return LengthSummary(
        count=len(ordered),
        mean=mean,
        median=float(np.median(ordered)),
        p90=float(ordered[math.ceil(0.9 * len(ordered)) - 1]),
        maximum=ordered[-1],
        mean_low=max(0.0, mean - reach),
        mean_high=mean + reach,
    )


def length_groups(
    sample_ps: Sequence[Sequence[GradedSample]], measure: Callable[[GradedSample], int | None], *, z: float
) -> dict[str, LengthSummary | None]:
    """One measure over all samples, over the correct ones, and over the others (``GROUPS``); samples without that length are left out."""
    every = [[(length, sample.verdict == "correct") for sample in group if (length := measure(sample)) is not None] for group in sample_ps]
    return {
        "all": summarise_lengths([[length for length, _ in group] for group in every], z=z),
        "correct": summarise_lengths([[length for length, right in group if right] for group in every], z=z),
        "not_correct": summarise_lengths([[length for length, right in group if not right] for group in every], z=z),
    }


def mean_length(samples: Iterable[GradedSample], measure: Callable[[GradedSample], int | None]) -> float | None:
    """Mean over the samples whose length is known; None without any."""
    known = [length for sample in samples if (length := measure(sample)) is not None]
    return sum(known) / len(known) if known else None
