"""Everything that is said about one task in one mode.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_summary.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from statistics import NormalDist

from ms4_evals.graders.base import VERDICTS
from ms4_evals.statistics.agreement import SecondScore, disagrees, second_score
from ms4_evals.statistics.breakdowns import Slice, breakdowns, errata_free
from ms4_evals.statistics.lengths import GROUPS, LENGTHS, LengthSummary, length_groups
from ms4_evals.statistics.pairs import compare_modes
from ms4_evals.statistics.repeats import consensus_at_k, pass_at_k, powers_of_two
from ms4_evals.statistics.scores import Score, score
from ms4_evals.statistics.speed import Cost, cost_of
from ms4_evals.store.records import Evaluation, GradedSample

__all__ = ["GROUPS", "LENGTHS", "Summary", "compare_modes", "disagrees", "headline_score", "summarise"]

_VOTING_GRADERS = ("integer-box/",)
"""Graders whose ``extracted`` is equal for equal answers. Programs and sentences are hardly ever equal, so they cannot vote."""


@dataclass(frozen=True)
class ProblemResult:
    """One problem's graded samples, errors left out.

    Attributes:
        correct, samples: how many.
        first_is_correct: verdict of the sample with index 0; None where that one is not graded.
        lengths: mean by quantity (``LENGTHS``), where known.
    """

    correct: int
    samples: int
    first_is_correct: bool | None
    lengths: Mapping[str, float]

    @property
    def share(self) -> Fraction:
        """Of correct samples."""
        return Fraction(self.correct, self.samples)


@dataclass(frozen=True)
class Summary:
    """One task in one mode.

    Attributes:
        missing: planned samples that have not been drawn; errors are counted apart, under ``verdicts``.
        ungraded: drawn samples that have no verdict, because they wait for one or their grader failed.
        verdicts: number of samples per verdict.
        error_classes: number of errors per class.
        failure_classes: number of samples per class that their grader noted (``WA``, ``TLE`` ... of programs); empty for other graders.
        at_limit: samples that their token limit ended, whatever their verdict.
        open_thinking: samples whose thinking never closed.
        score: over graded samples without errors; None without any. ``headline_score`` says whether it may be shown as the score.
        without_errata: the same over the problems that no erratum names; None where none does.
        problems: what each problem came to, by problem id, in the order of the task; problems without graded samples are left out.
        pass_at: pass@k by k. cons_at: cons@k by k, where answers can be compared with each other.
        breakdowns: by fact, and by length of the output.
        lengths: by quantity (``LENGTHS``) and group (``GROUPS``).
        second: the second grader beside the first; None where it gave no opinion.
        opinions: number of second opinions: agree, disagree, failed.
        disagreements: samples on which the second opinion differs from the verdict.
        cost: where prices are known.
    """

    evaluation: Evaluation
    missing: int
    ungraded: int
    verdicts: Mapping[str, int]
    error_classes: Mapping[str, int]
    failure_classes: Mapping[str, int]
    at_limit: int
    open_thinking: int
    score: Score | None
    without_errata: Score | None
    problems: Mapping[str, ProblemResult]
    pass_at: Mapping[int, float]
    cons_at: Mapping[int, float]
    breakdowns: Mapping[str, tuple[Slice, ...]]
    lengths: Mapping[str, Mapping[str, LengthSummary | None]]
    second: SecondScore | None
    opinions: Mapping[str, int]
    disagreements: Sequence[GradedSample] = field(repr=False)
    cost: Cost | None

    @property
    def errors(self) -> int:
        """Samples without an answer for reasons that are not the model's."""
        return self.verdicts["error"]

    @property
    def graded(self) -> int:
        """Samples that the score is made of."""
        return self.evaluation.planned - self.left_out

    @property
    def left_out(self) -> int:
        """Planned samples that the score is not made of: missing, ungraded, errors."""
        return self.missing + self.ungraded + self.errors

    @property
    def is_complete(self) -> bool:
        """Every planned sample was drawn and graded, and none is an error."""
        return self.left_out == 0

    @property
    def problem_means(self) -> dict[str, float]:
        """Share of correct samples per problem id."""
        return {name: result.correct / result.samples for name, result in self.problems.items()}


def headline_score(summary: Summary, *, allow_errors: bool) -> Score | None:
    """The score that may be shown as the result of the evaluation.

    None while samples are missing, ungraded or errors, because those are not a random part: what times out is what takes longest. With
    ``allow_errors`` they are left out, and whoever shows the score says how many (``Summary.left_out``).
    """
    return summary.score if summary.is_complete or allow_errors else None


def summarise(
    evaluation: Evaluation,
    samples: Sequence[GradedSample],
    *,
    confidence: float,
    ungraded: int = 0,
    failure_classes: Mapping[str, int] | None = None,
) -> Summary:
    """Summarise the stored samples of an evaluation.

    Args:
        evaluation: what was planned.
        samples: what is there and graded, by problem and index.
        confidence: of every interval.
        ungraded: samples that are there without a verdict (``queries.count_ungraded``).
        failure_classes: number of samples per class that their grader noted (``queries.failure_classes``).
    """
    by_problem: dict[str, list[GradedSample]] = {problem.problem_id: [] for problem in evaluation.problems}
    for sample in samples:
        if sample.error is None:
            by_problem[sample.problem_id].append(sample)
    by_problem = {name: group for name, group in by_problem.items() if group}
    groups = list(by_problem.values())
    graded = [sample for group in groups for sample in group]
    correct_ps = [[sample.verdict == "correct" for sample in group] for group in groups]
    ks = powers_of_two(min(map(len, groups))) if groups else []
    sound = errata_free(evaluation.problems)
    sound_ps = [right for name, right in zip(by_problem, correct_ps, strict=True) if sound is not None and name in sound]
    disagreements = [sample for sample in graded if disagrees(sample)]
    failed = sum(sample.opinion == "failed" for sample in graded)
    agreed = sum(sample.opinion is not None for sample in graded) - failed - len(disagreements)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    errors = Counter(sample.error_class or "unknown" for sample in samples if sample.error is not None)
    return Summary(
        evaluation=evaluation,
        missing=evaluation.planned - len(samples) - ungraded,
        ungraded=ungraded,
        verdicts={verdict: sum(sample.verdict == verdict for sample in samples) for verdict in VERDICTS},
        error_classes=dict(sorted(errors.items())),
        failure_classes=dict(failure_classes or {}),
        at_limit=sum(sample.finish_reason == "length" for sample in graded),
        open_thinking=sum(sample.thinking_is_open for sample in graded),
        score=score(correct_ps, confidence) if groups else None,
        without_errata=score(sound_ps, confidence) if sound_ps else None,
        problems={name: _problem_result(group) for name, group in by_problem.items()},
        pass_at={k: pass_at_k(correct_ps, k) for k in ks},
        cons_at=_consensus(evaluation, groups, ks),
        breakdowns=breakdowns(evaluation.problems, by_problem, confidence),
        lengths={name: length_groups(groups, measure, z=z) for name, measure in LENGTHS.items()},
        second=second_score(evaluation.second_grader, groups, confidence),
        opinions={"agree": agreed, "disagree": len(disagreements), "failed": failed},
        disagreements=disagreements,
        cost=cost_of(samples),
    )


def _problem_result(group: Sequence[GradedSample]) -> ProblemResult:
    first = next((sample for sample in group if sample.sample_index == 0), None)
    lengths: dict[str, float] = {}
    for name, measure in LENGTHS.items():
        known = [length for sample in group if (length := measure(sample)) is not None]
        if known:
            lengths[name] = sum(known) / len(known)
    return ProblemResult(
        correct=sum(sample.verdict == "correct" for sample in group),
        samples=len(group),
        first_is_correct=None if first is None else first.verdict == "correct",
        lengths=lengths,
    )


def _consensus(evaluation: Evaluation, groups: Sequence[Sequence[GradedSample]], ks: Sequence[int]) -> dict[int, float]:
    if not evaluation.grader_id.startswith(_VOTING_GRADERS):
        return {}
    votes_ps = [[(sample.extracted, sample.verdict == "correct") for sample in group] for group in groups]
    return {k: consensus_at_k(votes_ps, k) for k in ks}
