"""Grading beside drawing: every sample gets its verdict once, a grader's failure is not the answer's, an interruption loses nothing."""

import dataclasses
import threading
import time

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes, shared_second_opinion

from ms4_evals.graders.base import Grade, GradingFailure
from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.progress import Progress
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_train.errors import StoppedError

PROBLEMS, SAMPLES = 6, 2
PLANNED = 2 * PROBLEMS * SAMPLES


@dataclasses.dataclass(frozen=True)
class SlowGrader(IntegerGrader):
    """Grades in threads, and notes how many grade at once and which answers it saw."""

    is_instant: bool = False
    grader_id: str = "slow/1"
    second_grader: str = "twice"
    seconds: float = 0.0
    fails: frozenset = frozenset()
    seen: list = dataclasses.field(default_factory=list)
    at_work: list = dataclasses.field(default_factory=list)
    most: list = dataclasses.field(default_factory=list)

    def grade(self, problem, answer, *, is_truncated):
        self.at_work.append(threading.get_ident())
        self.most.append(len(self.at_work))
        time.sleep(self.seconds)
        self.at_work.pop()
        self.seen.append(problem.problem_id)
        if problem.problem_id in self.fails:
            raise GradingFailure("the judge is out")
        grade = super().grade(problem, answer, is_truncated=is_truncated)
        return Grade(grade.verdict, grade.extracted, {"by": self.grader_id}, "correct")


def evaluate(path, grader, client=None, workers=4, **options):
    tasks = [dataclasses.replace(task, grader=grader) for task in arithmetic_tasks(PROBLEMS, SAMPLES)]
    plans = make_plans(tasks, both_modes())
    record = RunRecord("rule", {"weights": "rule"}, 0)
    client = client or RuleClient(tasks)
    with ResultStore.open(path) as store:
        outcome = run_evaluations(
            client,
            store,
            plans,
            record,
            config={},
            progress=Progress(),
            second_opinion=shared_second_opinion(),
            workers=workers,
            **options,
        )
    with ResultStore.read(path) as store:
        samples = [sample for plan in plans for sample in store.graded_samples(record.run_id, plan.evaluation)]
        assert all(store.texts(sample).details == {"by": grader.grader_id} for sample in samples if sample.error is None)
    return outcome, samples


def verdicts(samples):
    return [(sample.problem_id, sample.sample_index, sample.verdict, sample.extracted) for sample in samples]


def test_a_slow_grader_gives_the_verdicts_of_an_instant_one_and_grades_each_sample_once(tmp_path):
    grader = SlowGrader(seconds=0.01)
    outcome, samples = evaluate(tmp_path / "slow.sqlite", grader)
    assert (outcome.drawn, outcome.ungraded) == (PLANNED, 0)
    assert len(grader.seen) == PLANNED
    assert 1 < max(grader.most) <= 4, "several at once, never more than the workers"
    quick = SlowGrader(is_instant=True)
    _, expected = evaluate(tmp_path / "quick.sqlite", quick)
    assert verdicts(samples) == verdicts(expected)
    assert {sample.opinion for sample in samples} == {"correct"}, "the grader's own second opinion is kept"


@pytest.mark.parametrize("is_instant", [False, True])
def test_what_a_grader_could_not_grade_is_graded_later_without_drawing(tmp_path, is_instant):
    failing = frozenset(problem.problem_id for problem in arithmetic_tasks(PROBLEMS)[0].problems[:2])
    path = tmp_path / "r.sqlite"
    outcome, samples = evaluate(path, SlowGrader(fails=failing, is_instant=is_instant))
    lost = 2 * SAMPLES * 2
    assert (outcome.errors, outcome.ungraded, outcome.grader_failures[0]) == (0, lost, "the judge is out")
    assert len(samples) == PLANNED - lost
    client = RuleClient(arithmetic_tasks(PROBLEMS, SAMPLES))
    grader = SlowGrader(is_instant=is_instant)
    outcome, samples = evaluate(path, grader, client)
    assert client.asked == []
    assert (outcome.reused, outcome.drawn, outcome.ungraded) == (PLANNED, 0, 0)
    assert set(grader.seen) == failing, "what had its verdict is not graded again"
    assert len(samples) == PLANNED


def test_an_interruption_keeps_samples_and_the_verdicts_that_were_ready(tmp_path):
    path = tmp_path / "r.sqlite"
    client = RuleClient(arithmetic_tasks(PROBLEMS, SAMPLES), stop_after=10)
    with pytest.raises(KeyboardInterrupt):
        evaluate(path, SlowGrader(seconds=0.02), client, workers=1)
    outcome, samples = evaluate(path, SlowGrader())
    assert (outcome.reused, outcome.drawn) == (10, PLANNED - 10)
    assert len(samples) == PLANNED


def test_a_stop_does_not_wait_for_a_judge_and_keeps_what_was_graded(tmp_path):
    judge_is_back = threading.Event()

    @dataclasses.dataclass(frozen=True)
    class Hanging(SlowGrader):
        def grade(self, problem, answer, *, is_truncated):
            if len(self.seen) >= 3:
                assert judge_is_back.wait(60)
            return super().grade(problem, answer, is_truncated=is_truncated)

    path, grader = tmp_path / "r.sqlite", Hanging()
    began = time.monotonic()
    with pytest.raises(StoppedError, match=rf"stopped with {PLANNED - 3} samples to grade"):
        evaluate(path, grader, workers=1, should_stop=lambda: len(grader.seen) == 3 and time.monotonic() > began + 1)
    assert not judge_is_back.is_set()
    judge_is_back.set()
    again = SlowGrader()
    outcome, samples = evaluate(path, again)
    assert (outcome.reused, outcome.drawn, len(again.seen)) == (PLANNED, 0, PLANNED - 3)
    assert len(samples) == PLANNED


def test_errors_are_never_shown_to_a_grader(tmp_path):
    grader = SlowGrader()
    client = RuleClient(arithmetic_tasks(PROBLEMS, SAMPLES), fail=lambda request: True)
    outcome, samples = evaluate(tmp_path / "r.sqlite", grader, client)
    assert (outcome.errors, grader.seen) == (PLANNED, [])
    assert {sample.verdict for sample in samples} == {"error"}


def two_windows(grader):
    (task,) = arithmetic_tasks(PROBLEMS, SAMPLES)
    whole = dataclasses.replace(task, grader=grader)
    return [whole, dataclasses.replace(whole, name="window", problems=task.problems[2:])]


def evaluate_windows(path, grader):
    tasks = two_windows(grader)
    plans = make_plans(tasks, both_modes())
    record = RunRecord("rule", {"weights": "rule"}, 0)
    with ResultStore.open(path) as store:
        outcome = run_evaluations(RuleClient(tasks), store, plans, record, config={}, progress=Progress())
        return outcome, [len(store.graded_samples(record.run_id, plan.evaluation)) for plan in plans]


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_samples_of_overlapping_tasks_that_wait_for_a_verdict_get_one(tmp_path, seconds):
    """Both tasks list them as ungraded; a second verdict would be refused by the store, at every start anew."""
    every = frozenset(problem.problem_id for problem in two_windows(None)[0].problems)
    path = tmp_path / "r.sqlite"
    outcome, graded = evaluate_windows(path, SlowGrader(fails=every))
    assert (outcome.drawn, outcome.ungraded, graded) == (PLANNED, PLANNED, [0, 0, 0, 0]), "each is counted once"
    grader = SlowGrader(seconds=seconds)
    outcome, graded = evaluate_windows(path, grader)
    assert (outcome.drawn, outcome.ungraded) == (0, 0)
    assert graded == [12, 12, 8, 8]
    assert len(grader.seen) == PLANNED
