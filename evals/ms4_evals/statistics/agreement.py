"""Two graders on the same answers: what the second one would have scored, and how often the two agree.

The second opinion never changes a verdict. Where it covers a part of the samples only (numeric answers among prose, say), the first
grader's score on that very part stands beside it, because a score on other samples would say nothing about the graders.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_agreement.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ms4_evals.statistics.scores import Score, score
from ms4_evals.store.records import GradedSample


@dataclass(frozen=True)
class SecondScore:
    """The second grader beside the first, on the samples that both judged.

    Attributes:
        samples: that both judged; samples that the second grader failed on, or had no opinion on, are left out.
        score: the second grader's. first_score: the first one's, of the same samples.
        second_only, first_only: samples that only this grader calls correct.
        kappa: agreement beyond chance (Cohen 1960); None where chance alone gives full agreement.
    """

    name: str
    samples: int
    score: Score
    first_score: Score
    second_only: int
    first_only: int
    kappa: float | None


def disagrees(sample: GradedSample) -> bool:
    """Whether the second opinion was given and differs from the verdict."""
    return sample.opinion in ("correct", "wrong") and (sample.opinion == "correct") != (sample.verdict == "correct")


def second_score(name: str, sample_ps: Sequence[Sequence[GradedSample]], confidence: float) -> SecondScore | None:
    """The second grader's score; None where it gave no opinion.

    Args:
        name: of the second grader.
        sample_ps: samples by problem, errors left out.
        confidence: of the intervals.
    """
    judged_ps = [judged for group in sample_ps if (judged := [sample for sample in group if sample.opinion in ("correct", "wrong")])]
    if not judged_ps:
        return None
    first_ps = [[sample.verdict == "correct" for sample in group] for group in judged_ps]
    second_ps = [[sample.opinion == "correct" for sample in group] for group in judged_ps]
    pairs = [pair for group in zip(first_ps, second_ps, strict=True) for pair in zip(*group, strict=True)]
    return SecondScore(
        name=name,
        samples=len(pairs),
        score=score(second_ps, confidence),
        first_score=score(first_ps, confidence),
        second_only=sum(second and not first for first, second in pairs),
        first_only=sum(first and not second for first, second in pairs),
        kappa=cohens_kappa(pairs),
    )


def cohens_kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """(observed - chance agreement) / (1 - chance agreement) of two raters; None where the denominator is zero."""
    count = len(pairs)
    first, second = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    # Counts times the number of pairs, so that full chance agreement is told exactly.
    observed = count * sum(a == b for a, b in pairs)
    chance = first * second + (count - first) * (count - second)
    return None if chance == count * count else (observed - chance) / (count * count - chance)
