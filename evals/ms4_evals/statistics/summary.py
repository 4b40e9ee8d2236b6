"""Everything that is said about one task in one mode, and about the two modes of a task together.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_summary.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ms4_evals.graders.integer import VERDICTS
from ms4_evals.statistics.lengths import LengthSummary, summarise_lengths
from ms4_evals.statistics.repeats import consensus_at_k, pass_at_k, powers_of_two
from ms4_evals.statistics.scores import Difference, Score, paired_difference, score
from ms4_evals.store.records import Evaluation, GradedSample

LENGTHS: dict[str, Callable[[GradedSample], int]] = {
    "thinking_chars": lambda sample: len(sample.thinking),
    "answer_chars": lambda sample: len(sample.answer),
    "total_chars": lambda sample: len(sample.thinking) + len(sample.answer),
    "thinking_tokens": lambda sample: sample.thinking_tokens,
    "answer_tokens": lambda sample: sample.answer_tokens,
    "total_tokens": lambda sample: sample.thinking_tokens + sample.answer_tokens,
}
GROUPS = ("all", "correct", "not_correct")


@dataclass(frozen=True)
class Summary:
    """One task in one mode.

    Attributes:
        missing: planned samples that have not been drawn; errors are counted apart, under ``verdicts``.
        verdicts: number of samples per verdict.
        at_limit: samples that their token limit ended, whatever their verdict.
        open_thinking: samples whose thinking never closed.
        score: over graded samples without errors; None without any.
        problem_means: share of correct samples per problem id.
        pass_at: pass@k by k. cons_at: cons@k by k.
        lengths: by quantity (``LENGTHS``) and group (``GROUPS``).
        opinions: number of second opinions: agree, disagree, failed.
        disagreements: samples on which the second opinion differs from the verdict.
    """

    evaluation: Evaluation
    missing: int
    verdicts: Mapping[str, int]
    at_limit: int
    open_thinking: int
    score: Score | None
    problem_means: Mapping[str, float]
    pass_at: Mapping[int, float]
    cons_at: Mapping[int, float]
    lengths: Mapping[str, Mapping[str, LengthSummary | None]]
    opinions: Mapping[str, int]
    disagreements: Sequence[GradedSample]

    @property
    def errors(self) -> int:
        """Samples without an answer for reasons that are not the model's."""
        return self.verdicts["error"]

    @property
    def graded(self) -> int:
        """Samples that the score is made of."""
        return self.evaluation.planned - self.missing - self.errors

    @property
    def is_complete(self) -> bool:
        """Every planned sample was drawn, and none is an error."""
        return self.missing == 0 and self.errors == 0


def summarise(evaluation: Evaluation, samples: Sequence[GradedSample], *, confidence: float) -> Summary:
    """Summarise the stored samples of an evaluation.

    Args:
        evaluation: what was planned.
        samples: what is there, by problem and index.
        confidence: of every interval.
    """
    graded = [sample for sample in samples if sample.error is None]
    by_problem: dict[str, list[GradedSample]] = {}
    for sample in graded:
        by_problem.setdefault(sample.problem_id, []).append(sample)
    groups = list(by_problem.values())
    correct_ps = [[sample.verdict == "correct" for sample in group] for group in groups]
    votes_ps = [[(sample.extracted, sample.verdict == "correct") for sample in group] for group in groups]
    ks = powers_of_two(min(map(len, groups))) if groups else []
    disagreements = [sample for sample in graded if disagrees(sample)]
    failed = sum(sample.opinion == "failed" for sample in graded)
    agreed = sum(sample.opinion is not None for sample in graded) - failed - len(disagreements)
    return Summary(
        evaluation=evaluation,
        missing=evaluation.planned - len(samples),
        verdicts={verdict: sum(sample.verdict == verdict for sample in samples) for verdict in VERDICTS},
        at_limit=sum(sample.finish_reason == "length" for sample in graded),
        open_thinking=sum(sample.thinking_is_open for sample in graded),
        score=score(correct_ps, confidence) if groups else None,
        problem_means={name: sum(s.verdict == "correct" for s in group) / len(group) for name, group in by_problem.items()},
        pass_at={k: pass_at_k(correct_ps, k) for k in ks},
        cons_at={k: consensus_at_k(votes_ps, k) for k in ks},
        lengths={name: _length_groups(groups, measure, confidence) for name, measure in LENGTHS.items()},
        opinions={"agree": agreed, "disagree": len(disagreements), "failed": failed},
        disagreements=disagreements,
    )


def compare_modes(high: Summary, none: Summary, *, confidence: float, resamples: int, seed: int) -> Difference | None:
    """high - none over the problems of one board; None while either is incomplete.

    Raises:
        AssertionError: the two are of different boards, which nobody may compare.
    """
    assert high.evaluation.board_id == none.evaluation.board_id
    if not (high.is_complete and none.is_complete):
        return None
    names = [problem.problem_id for problem in high.evaluation.problems]
    return paired_difference(
        [high.problem_means[name] for name in names],
        [none.problem_means[name] for name in names],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def disagrees(sample: GradedSample) -> bool:
    """Whether the second opinion was given and differs from the verdict."""
    return sample.opinion in ("correct", "wrong") and (sample.opinion == "correct") != (sample.verdict == "correct")


def _length_groups(
    groups: Sequence[Sequence[GradedSample]], measure: Callable[[GradedSample], int], confidence: float
) -> dict[str, LengthSummary | None]:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    every = [[(measure(sample), sample.verdict == "correct") for sample in group] for group in groups]
    return {
        "all": summarise_lengths([[length for length, _ in group] for group in every], z=z),
        "correct": summarise_lengths([[length for length, right in group if right] for group in every], z=z),
        "not_correct": summarise_lengths([[length for length, right in group if not right] for group in every], z=z),
    }
