"""Auditing a judge: agreement, kappa and lists against numbers worked out elsewhere, and from a store that an evaluation filled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score
from support.judges import judging
from support.lcr_data import ANSWERS_1_1, small_questions, write_hub_copy

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_evals.graders.judge.audit import agreement, chosen_share, judge_again, summarise_replies
from ms4_evals.graders.judge.grader import JudgeGrader
from ms4_evals.graders.judge.opening import open_judge
from ms4_evals.progress import Progress
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import GradedSample, RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.base import TaskProblem
from ms4_evals.tasks.lcr import task as task_module
from ms4_evals.tasks.lcr.task import LongContextTask, lcr_task
from ms4_evals.tasks.lcr.tokens import TokenCheck
from ms4_train.config.endpoint import JudgeSection
from ms4_train.config.eval_tasks import LcrTask, ModeSampling, ModesSection


def _sample(number: int, verdict: str, opinion: str | None) -> GradedSample:
    return GradedSample(
        sample_id=number,
        problem_id=f"lcr_1.0/{number:03d}",
        grading_id="grading",
        sample_index=0,
        seed=1,
        gold=str(number),
        thinking_chars=0,
        answer_chars=1,
        thinking_is_open=0,
        thinking_tokens=0,
        answer_tokens=1,
        prompt_tokens=None,
        usage_tokens=None,
        usage_thinking_tokens=None,
        cost=None,
        seconds=1.0,
        first_token_seconds=None,
        endpoint="",
        attempts=1,
        finish_reason="stop",
        error=None,
        error_class=None,
        verdict=verdict,  # type: ignore[arg-type]
        extracted="x",
        opinion=opinion,  # type: ignore[arg-type]
    )


def _samples(pairs: Mapping[tuple[str, str | None], int]) -> list[GradedSample]:
    return [_sample(number, *pair) for number, pair in enumerate((pair for pair, count in pairs.items() for _ in range(count)), start=1)]


MIXED: dict[tuple[str, str | None], int] = {
    ("correct", "correct"): 11,
    ("wrong", "wrong"): 7,
    ("correct", "wrong"): 2,
    ("wrong", "correct"): 1,
    ("correct", "failed"): 3,
    ("correct", None): 5,
    ("truncated", None): 2,
    ("no-answer", None): 1,
}


def test_agreement_of_a_mixed_lot() -> None:
    found = agreement(_samples(MIXED))
    assert (found.compared, found.agreed, found.undecided, found.unchecked) == (21, 18, 3, 5)
    assert found.rate == 18 / 21
    first = ["c"] * 11 + ["w"] * 7 + ["c"] * 2 + ["w"]
    second = ["c"] * 11 + ["w"] * 7 + ["w"] * 2 + ["c"]
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    theirs = binomtest(18, 21).proportion_ci(0.95, method="wilson")
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert [(item.judge, item.check) for item in found.disagreements] == [("correct", "wrong")] * 2 + [("wrong", "correct")]
    assert found.disagreements[0].problem_id == "lcr_1.0/019"


def test_agreement_where_there_is_nothing_to_compare() -> None:
    nothing = agreement(_samples({("correct", None): 4, ("truncated", None): 1}))
    assert (nothing.compared, nothing.rate, nothing.kappa, nothing.interval, nothing.disagreements) == (0, None, None, None, ())
    # Both always say the same one thing: agreement by chance is certain, and kappa says nothing.
    always = agreement(_samples({("correct", "correct"): 9}))
    assert (always.rate, always.kappa) == (1.0, None)


@pytest.mark.parametrize("table", [(5, 0, 0, 5), (0, 5, 5, 0), (1, 2, 3, 4), (100, 3, 2, 1)])
def test_kappa_against_scikit_learn(table: tuple[int, int, int, int]) -> None:
    kinds = [("correct", "correct"), ("correct", "wrong"), ("wrong", "correct"), ("wrong", "wrong")]
    found = agreement(_samples({kind: count for kind, count in zip(kinds, table, strict=True) if count}))
    pairs = [kind for kind, count in zip(kinds, table, strict=True) for _ in range(count)]
    theirs = cohen_kappa_score([one for one, _ in pairs], [other for _, other in pairs])
    assert found.kappa == pytest.approx(theirs, abs=1e-12)
    same, count = table[0] + table[3], sum(table)
    interval = binomtest(same, count).proportion_ci(0.95, method="wilson")
    assert found.interval == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert len(found.lines()) == 1 + table[1] + table[2]


def test_replies_are_summarised() -> None:
    details: list[tuple[int, Mapping[str, Any] | None]] = [
        (1, {"judge": "one", "unparsable": 0}),
        (2, {"judge": "one", "unparsable": 2, "addresses_judge": True}),
        (3, None),
        (4, {"failing_test": 3}),
    ]
    found = summarise_replies(details)
    assert (found.judged, found.asked_again, found.unparsable, found.addressing) == (2, 1, 2, (2,))


def test_the_share_is_fixed_and_holds_judged_samples_only() -> None:
    samples = _samples(MIXED)
    chosen = chosen_share(samples, 0.1)
    assert chosen == chosen_share(list(reversed(samples)), 0.1)
    assert len(chosen) == 3  # of 29, rounded up
    assert all(sample.verdict in {"correct", "wrong"} for sample in chosen_share(samples, 1.0))
    assert chosen_share([], 0.5) == []


def test_a_fickle_judge_is_found_out() -> None:
    samples = [_sample(number, "correct", None) for number in range(1, 11)]

    def ask(request: SampleRequest) -> SampleAnswer:
        number = int(request.problem_id[-3:])
        text = "hm" if number == 10 else "INCORRECT" if number <= 3 else "CORRECT"
        return SampleAnswer("hash", "", text, False, "stop", 0.1)

    grader = JudgeGrader("1.0", ask, "fickle")
    found = judge_again(grader, samples, lambda item: TaskProblem(item.problem_id, "?", item.gold), lambda item: "answer", share=1.0)
    assert (found.asked, found.same, found.failed, found.rate) == (9, 6, 1, 6 / 9)
    assert sorted(found.flips) == [(number, "correct", "wrong") for number in (1, 2, 3)]


class _Answers:
    """A model under test: right for even questions, wrong for others, empty for 5, cut off for 7."""

    def __init__(self, task: LongContextTask) -> None:
        self._golds = {problem.problem_id: problem.gold for problem in task.problems}

    def identity(self) -> Mapping[str, Any]:
        return {"weights": "rule"}

    def versions(self) -> Mapping[str, str]:
        return {}

    def answer(
        self,
        requests: Sequence[SampleRequest],
        on_finish: Callable[[SampleRequest, SampleAnswer], None],
        on_progress: Callable[[int], None],
    ) -> None:
        for request in requests:
            number = int(request.problem_id[-3:])
            gold = self._golds[request.problem_id]
            text = "" if number == 5 else f"The answer is {gold}." if number % 2 == 0 else "The answer is 123456789."
            on_finish(request, SampleAnswer("hash", "", text, False, "length" if number == 7 else "stop", 0.1))

    def close(self) -> None:
        """Nothing to let go of."""


@contextlib.contextmanager
def _evaluated(version: str, mode: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, ...]]:
    monkeypatch.setattr(task_module, "check_tokens", lambda questions: TokenCheck("none", False, 0, 0))
    # Questions 8, 9 and 22 have numbers for official answers, as in the real data.
    numbers = {8: "2537553", 9: "91366", 22: "5000"}
    answers = numbers | (ANSWERS_1_1 if version == "1.1" else {})
    data = write_hub_copy(folder / "data", small_questions(), answers=answers)
    wanted = [2, 3, 5, 7, 8, 9, 22, 40]
    section = LcrTask.model_validate({"task": "lcr", "version": version, "path": str(data), "samples": 1, "questions": wanted})
    with judging(mode) as judge, ResultStore.open(folder / "results.sqlite") as store:
        settings = JudgeSection.model_validate({"servers": [{"base_url": judge.url}], "kind": "vllm", "max_attempts": 1})
        with open_judge(settings) as (ask, name):
            grader = JudgeGrader(section.version, ask, name)
            task = lcr_task(section, grader)
            client = _Answers(task)
            run = RunRecord("rule", client.identity(), 0)
            (plan,) = make_plans([task], ModesSection(none=ModeSampling(), high=None))
            outcome = run_evaluations(client, store, [plan], run, config={}, progress=Progress())
            yield store, run, plan.evaluation, grader, outcome, judge


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_evaluation_with_a_local_judge_is_stored_and_audited(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _evaluated(version, "rule", tmp_path, monkeypatch) as (store, run, evaluation, grader, outcome, judge):
        assert (outcome.drawn, outcome.ungraded) == (8, 0)
        samples = store.graded_samples(run.run_id, evaluation)
        verdicts = {int(sample.problem_id[-3:]): (sample.verdict, sample.opinion) for sample in samples}
        quantity = {"1.0": "correct", "1.1": None}[version]  # 45444, or June 2024
        assert verdicts == {
            2: ("correct", None),
            3: ("wrong", None),
            5: ("no-answer", None),
            7: ("truncated", None),
            8: ("correct", "correct"),
            9: ("wrong", "wrong"),
            22: ("correct", "correct"),
            40: ("correct", quantity),
        }
        assert len(judge.requests) == 6
        assert evaluation.second_grader == "numeric/1.0"
        assert version in evaluation.grader_id
        found = agreement(samples)
        assert (found.compared, found.rate) == (4 if quantity else 3, 1.0)
        replies = summarise_replies((sample.sample_id, store.texts(sample).details) for sample in samples)
        assert (replies.judged, replies.unparsable) == (6, 0)
        problems = {problem.problem_id: TaskProblem(problem.problem_id, problem.question, problem.gold) for problem in evaluation.problems}
        again = judge_again(
            grader, samples, lambda sample: problems[sample.problem_id], lambda sample: store.texts(sample).answer, share=1.0
        )
        assert (again.asked, again.same, again.failed) == (6, 6, 0)


def test_a_judge_that_finds_everything_right_is_caught_by_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _evaluated("1.0", "always-correct", tmp_path, monkeypatch) as (store, run, evaluation, *_):
        found = agreement(store.graded_samples(run.run_id, evaluation))
    assert [(item.problem_id, item.judge, item.check) for item in found.disagreements] == [("lcr_1.0/009", "correct", "wrong")]


def test_answers_without_a_verdict_are_judged_on_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _evaluated("1.0", "garbage", tmp_path, monkeypatch) as (_, _, _, _, outcome, _):
        assert (outcome.drawn, outcome.ungraded) == (8, 6)
        assert "no verdict" in outcome.grader_failures[0]
    with _evaluated("1.0", "rule", tmp_path, monkeypatch) as (store, run, evaluation, _, outcome, _):
        assert (outcome.drawn, outcome.reused, outcome.ungraded) == (0, 8, 0)
        assert len(store.graded_samples(run.run_id, evaluation)) == 8


def test_samples_can_be_compared_whatever_their_number() -> None:
    many = _samples({("correct", "correct"): 3000, ("wrong", "wrong"): 1000})
    assert agreement(replace(sample, sample_index=1) for sample in many).rate == 1.0
