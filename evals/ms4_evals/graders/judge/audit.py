"""Audits a judge: does it agree with the deterministic check, and with itself?

Agreement is counted over the answers that both saw: the judge gave ``correct`` or ``wrong``, and the official answer is a quantity that the
check could decide. Cohen's kappa takes off what two graders with these rates would agree on by chance; it is None where one of them never
varies. Disagreements are listed one by one, because in each of them one of the two is mistaken, and a person can tell which.

Agreement with itself is measured on a fixed share of the answers, chosen by a hash, so that the same ones are chosen every time.

Exercise it: ``pytest tests/evals/ms4_evals/graders/judge/test_audit.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms4_evals.graders.base import GradingFailure
from ms4_evals.graders.judge.grader import JudgeGrader
from ms4_evals.identity import content_hash
from ms4_evals.outside_text import one_line
from ms4_evals.statistics.agreement import cohens_kappa
from ms4_evals.statistics.scores import wilson_interval
from ms4_evals.store.records import GradedSample
from ms4_evals.tasks.base import TaskProblem

DEFAULT_SHARE = 0.1
_VERDICTS = ("correct", "wrong")


@dataclass(frozen=True)
class Disagreement:
    """One answer that judge and check see differently."""

    sample_id: int
    problem_id: str
    sample_index: int
    gold: str
    judge: str
    check: str


@dataclass(frozen=True)
class Agreement:
    """How far two graders agree.

    Attributes:
        table: answers by (verdict of the judge, opinion of the check).
        undecided: answers that the judge saw, with a quantity for an official answer, where the check could not decide.
        unchecked: answers that the judge saw whose official answer is no quantity.
        kappa: Cohen's; None where it is undefined.
        interval: of the rate, Wilson's, 95 %; None without answers.
        disagreements: every one, in the order of the samples.
    """

    table: Mapping[tuple[str, str], int]
    undecided: int
    unchecked: int
    kappa: float | None
    interval: tuple[float, float] | None
    disagreements: tuple[Disagreement, ...]

    @property
    def compared(self) -> int:
        """Answers that both decided."""
        return sum(self.table.values())

    @property
    def agreed(self) -> int:
        """Answers on which they agree."""
        return sum(self.table[verdict, verdict] for verdict in _VERDICTS)

    @property
    def rate(self) -> float | None:
        """Share of the compared answers on which they agree."""
        return self.agreed / self.compared if self.compared else None

    def lines(self) -> list[str]:
        """For people: the rate, kappa, and every disagreement."""
        apart = f"{self.unchecked:,} without a number to check, {self.undecided:,} where the check could not decide"
        if self.rate is None or self.interval is None:
            return [f"no answer was checked ({apart})"]
        low, high = self.interval
        kappa = "undefined" if self.kappa is None else f"{self.kappa:.2f}"
        first = (
            f"judge and check of numbers agree on {self.agreed:,} of {self.compared:,}: {100 * self.rate:.1f} %"
            f" ({100 * low:.1f} to {100 * high:.1f}), kappa {kappa} ({apart})"
        )
        return [first] + [
            one_line(f"{item.problem_id}, sample {item.sample_index}: official {item.gold}, judge {item.judge}, check {item.check}")
            for item in self.disagreements
        ]


@dataclass(frozen=True)
class Replies:
    """What the judge's replies were like.

    Attributes:
        judged: answers with a verdict of the judge.
        asked_again: answers that took more than one reply.
        unparsable: replies that were no verdict.
        addressing: sample ids of answers that address the judge.
    """

    judged: int
    asked_again: int
    unparsable: int
    addressing: tuple[int, ...]

    def lines(self) -> list[str]:
        """For people, in one line."""
        return [
            f"{self.judged:,} answers judged, {self.asked_again:,} of them asked again, {self.unparsable:,} replies without a verdict,"
            f" {len(self.addressing):,} answers that address the judge"
        ]


@dataclass(frozen=True)
class SelfConsistency:
    """How often a judge, asked again, says the same.

    Attributes:
        asked: answers that were judged again.
        same: of those, with the same verdict.
        failed: answers for which the judge gave no verdict this time; not among ``asked``.
        flips: (sample id, first verdict, second verdict).
    """

    asked: int
    same: int
    failed: int
    flips: tuple[tuple[int, str, str], ...]

    @property
    def rate(self) -> float | None:
        """Share of the same verdicts."""
        return self.same / self.asked if self.asked else None

    def lines(self) -> list[str]:
        """For people, in one line."""
        if self.rate is None:
            return ["nothing was judged again"]
        lost = f", {self.failed:,} without a verdict this time" if self.failed else ""
        return [f"asked again, the judge says the same of {self.same:,} of {self.asked:,}: {100 * self.rate:.1f} %{lost}"]


def agreement(samples: Iterable[GradedSample]) -> Agreement:
    """Compare the judge's verdicts with the opinions that were stored beside them."""
    table = {(verdict, opinion): 0 for verdict in _VERDICTS for opinion in _VERDICTS}
    undecided = unchecked = 0
    disagreements: list[Disagreement] = []
    for sample in samples:
        if sample.verdict not in _VERDICTS:
            continue
        if sample.opinion is None:
            unchecked += 1
        elif sample.opinion == "failed":
            undecided += 1
        else:
            table[sample.verdict, sample.opinion] += 1
            if sample.verdict != sample.opinion:
                disagreements.append(
                    Disagreement(sample.sample_id, sample.problem_id, sample.sample_index, sample.gold, sample.verdict, sample.opinion)
                )
    compared = sum(table.values())
    same = table["correct", "correct"] + table["wrong", "wrong"]
    pairs = [(one == "correct", other == "correct") for (one, other), count in table.items() for _ in range(count)]
    return Agreement(
        table,
        undecided,
        unchecked,
        kappa=cohens_kappa(pairs) if pairs else None,
        interval=wilson_interval(same / compared, compared, 0.95) if compared else None,
        disagreements=tuple(disagreements),
    )


def summarise_replies(details: Iterable[tuple[int, Mapping[str, Any] | None]]) -> Replies:
    """What the details that the grader noted say of the judge's replies.

    Args:
        details: sample id and stored details of every sample; those without a judge's reply are passed over.
    """
    judged = asked_again = unparsable = 0
    addressing: list[int] = []
    for sample_id, noted in details:
        if noted is None or "judge" not in noted:
            continue
        judged += 1
        bad = int(noted.get("unparsable", 0))
        unparsable += bad
        asked_again += bad > 0
        if noted.get("addresses_judge"):
            addressing.append(sample_id)
    return Replies(judged, asked_again, unparsable, tuple(addressing))


def chosen_share(samples: Sequence[GradedSample], share: float = DEFAULT_SHARE) -> list[GradedSample]:
    """A fixed share of the judged samples, at least one if there are any: those with the smallest hashes of problem, index and gold."""
    judged = [sample for sample in samples if sample.verdict in _VERDICTS]
    ordered = sorted(judged, key=lambda sample: content_hash(["audit", sample.problem_id, sample.sample_index, sample.gold]))
    return ordered[: math.ceil(share * len(judged))]


def judge_again(
    grader: JudgeGrader,
    samples: Sequence[GradedSample],
    problem_of: Callable[[GradedSample], TaskProblem],
    answer_of: Callable[[GradedSample], str],
    *,
    share: float = DEFAULT_SHARE,
    turn: int = 1,
) -> SelfConsistency:
    """Have the same judge judge a fixed share of the samples again, under other seeds, and compare.

    Args:
        grader: the one that gave the verdicts.
        samples: of one evaluation.
        problem_of: a sample's question and official answer.
        answer_of: a sample's final answer, from the store.
        share: of the judged samples.
        turn: 1 for the second judgement, 2 for the third.
    """
    same = failed = 0
    flips: list[tuple[int, str, str]] = []
    chosen = chosen_share(samples, share)
    for sample in chosen:
        try:
            verdict = grader.judge(problem_of(sample), answer_of(sample), turn=turn).verdict
        except GradingFailure:
            failed += 1
            continue
        if verdict == sample.verdict:
            same += 1
        else:
            flips.append((sample.sample_id, sample.verdict, verdict))
    return SelfConsistency(len(chosen) - failed, same, failed, tuple(flips))
