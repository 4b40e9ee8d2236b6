"""What answers cost, and how fast they came.

Cost is a function of the stored samples and stands in reports. Speed is not: it changes with the machine and whatever else ran, so it
is shown by ``ms4 eval status``, the leaderboard and W&B, and never in a report.
Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_speed.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ms4_evals.store.records import GradedSample


@dataclass(frozen=True)
class Cost:
    """In the currency of the configured prices.

    Attributes:
        samples: whose cost is known; others are left out of everything here.
        per_correct: total by correct samples; None without any.
    """

    total: float
    samples: int
    per_sample: float
    per_correct: float | None


def cost_of(samples: Sequence[GradedSample]) -> Cost | None:
    """What the samples cost; None where no price is known."""
    priced = [(sample.cost, sample.verdict == "correct") for sample in samples if sample.cost is not None]
    if not priced:
        return None
    total = sum(cost for cost, _ in priced)
    correct = sum(right for _, right in priced)
    return Cost(total, len(priced), total / len(priced), total / correct if correct else None)


def speed_values(samples: Sequence[GradedSample], *, wall_seconds: float | None = None) -> dict[str, float]:
    """How fast answers came, as flat numbers; what is not known is left out.

    Samples that ended in errors are left out, but for ``retried_share``. Tokens are the server's or engine's own count
    where it gives one, else the common tokenizer's.

    Args:
        samples: of one evaluation, or of one session.
        wall_seconds: that all of them took together, where known.

    Returns:
        seconds_median, seconds_p90: of one answer. first_token_median, first_token_p90: seconds until it began.
        tokens_per_second_median: of one answer, after its first token where that was seen.
        answers_per_second, tokens_per_second: of all together, with ``wall_seconds``.
        retried_share: samples that took more than one request.
    """
    answered = [sample for sample in samples if sample.error is None]
    if not answered:
        return {}
    seconds = np.array([sample.seconds for sample in answered])
    tokens = np.array([_tokens(sample) for sample in answered])
    values = {"seconds_median": float(np.median(seconds)), "seconds_p90": float(np.quantile(seconds, 0.9))}
    first = np.array([sample.first_token_seconds for sample in answered if sample.first_token_seconds is not None])
    if len(first):
        values |= {"first_token_median": float(np.median(first)), "first_token_p90": float(np.quantile(first, 0.9))}
    rates = [rate for sample in answered if (rate := _rate(sample)) is not None]
    if rates:
        values["tokens_per_second_median"] = float(np.median(rates))
    if wall_seconds:
        values |= {"answers_per_second": len(answered) / wall_seconds, "tokens_per_second": float(tokens.sum()) / wall_seconds}
    values["retried_share"] = sum(sample.attempts > 1 for sample in samples) / len(samples)
    return values


def _tokens(sample: GradedSample) -> int:
    return sample.usage_tokens if sample.usage_tokens is not None else sample.thinking_tokens + sample.answer_tokens


def _rate(sample: GradedSample) -> float | None:
    """Tokens per second of one answer; None for answers too short to have a speed."""
    tokens, seconds = _tokens(sample), sample.seconds
    if sample.first_token_seconds is not None:
        tokens, seconds = tokens - 1, seconds - sample.first_token_seconds
    return tokens / seconds if tokens > 0 and seconds > 0 else None
