"""The runner against a client that answers by a rule: nothing is lost, nothing repeated, errors stay errors."""

import dataclasses

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes, shared_second_opinion

from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.identity import sample_seed
from ms4_evals.progress import Progress
from ms4_evals.report import build_report
from ms4_evals.runner import Plan, make_plans, repeat_notes, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_train.config.evaluation import ModesSection
from ms4_train.errors import EvaluationError

TASKS = arithmetic_tasks(problems=6, samples=2)
PLANNED = 2 * 6 * 2


def run(path, client, tasks=TASKS, modes=None, seed=0):
    plans = make_plans(tasks, modes or both_modes())
    record = RunRecord("rule", client.identity(), seed)
    with ResultStore.open(path) as store:
        outcome = run_evaluations(client, store, plans, record, config={}, progress=Progress(), second_opinion=shared_second_opinion())
        evaluations = [plan.evaluation for plan in plans]
        samples = [store.graded_samples(record.run_id, evaluation) for evaluation in evaluations]
        return outcome, build_report(store, record, evaluations, confidence=0.95, resamples=200), samples


def test_both_modes_are_drawn_graded_and_given_second_opinions(tmp_path):
    client = RuleClient(TASKS)
    outcome, report, (none, high) = run(tmp_path / "r.sqlite", client)
    assert (outcome.drawn, outcome.reused, outcome.errors) == (PLANNED, 0, 0)
    assert report["complete"]
    assert {sample.verdict for sample in high} == {"correct"}
    assert {sample.verdict for sample in none} == {"correct", "wrong"}
    for sample in none + high:
        assert sample.opinion == sample.verdict
    assert [request.mode for request in client.asked[: PLANNED // 2]] == ["high"] * (PLANNED // 2), "the long ones start first"


def test_every_sample_has_a_seed_of_its_own_that_depends_on_the_run_seed(tmp_path):
    first, again, other = (RuleClient(TASKS) for _ in range(3))
    run(tmp_path / "a.sqlite", first)
    run(tmp_path / "b.sqlite", again)
    run(tmp_path / "c.sqlite", other, seed=1)
    seeds = [request.seed for request in first.asked]
    assert len(set(seeds)) == PLANNED
    assert seeds == [request.seed for request in again.asked]
    assert not set(seeds) & {request.seed for request in other.asked}
    request = first.asked[5]
    assert request.seed == sample_seed(0, request.problem_id, request.sample_index, request.mode)


@pytest.mark.parametrize("stop_after", [0, 1, 7, PLANNED - 1])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_report(tmp_path, stop_after):
    _, expected, _ = run(tmp_path / "straight.sqlite", RuleClient(TASKS))
    path = tmp_path / "interrupted.sqlite"
    with pytest.raises(KeyboardInterrupt):
        run(path, RuleClient(TASKS, stop_after=stop_after))
    client = RuleClient(TASKS)
    outcome, report, _ = run(path, client)
    assert (outcome.reused, outcome.drawn) == (stop_after, PLANNED - stop_after)
    assert report == expected


def test_a_finished_run_asks_the_model_nothing(tmp_path):
    run(tmp_path / "r.sqlite", RuleClient(TASKS))
    client = RuleClient(TASKS)
    outcome, report, _ = run(tmp_path / "r.sqlite", client)
    assert (outcome.drawn, outcome.reused) == (0, PLANNED)
    assert client.asked == []
    assert report["complete"]


def test_errors_are_neither_right_nor_wrong_and_are_drawn_again(tmp_path):
    _, expected, _ = run(tmp_path / "straight.sqlite", RuleClient(TASKS))
    path = tmp_path / "r.sqlite"
    outcome, report, (_, high) = run(path, RuleClient(TASKS, fail=lambda request: request.sample_index == 1))
    assert outcome.errors == PLANNED // 2
    assert not report["complete"]
    assert [mode["score"] for mode in report["tasks"][0]["modes"]] == [None, None], "a headline is refused"
    with ResultStore.read(path) as store:
        (record,) = store.runs()
        allowed = build_report(store, record, store.evaluations(record.run_id), confidence=0.95, resamples=200, allow_errors=True)
    assert allowed["tasks"][0]["modes"][1]["score"]["value"] == 1.0, "asked for, it leaves the errors out"
    assert sum(sample.verdict == "error" for sample in high) == 6
    assert report["tasks"][0]["high_minus_none"] is None
    client = RuleClient(TASKS)
    _, mended, _ = run(path, client)
    assert {request.sample_index for request in client.asked} == {1}
    assert mended == expected


def test_more_samples_more_problems_and_more_tasks_reuse_what_is_there(tmp_path):
    path = tmp_path / "r.sqlite"
    run(path, RuleClient(TASKS))
    grown = arithmetic_tasks(problems=6, samples=3) + arithmetic_tasks(problems=2, kind="letters")
    outcome, report, _ = run(path, RuleClient(grown), tasks=grown)
    assert (outcome.reused, outcome.drawn) == (PLANNED, 2 * 6 + 2 * 2 * 2)
    _, straight, _ = run(tmp_path / "straight.sqlite", RuleClient(grown), tasks=grown)
    assert report == straight


def test_other_sampling_draws_anew(tmp_path):
    path = tmp_path / "r.sqlite"
    run(path, RuleClient(TASKS))
    modes = ModesSection.model_validate({"none": {"max_tokens": 16}, "high": {"max_tokens": 65}})
    outcome, _, _ = run(path, RuleClient(TASKS), modes=modes)
    assert (outcome.reused, outcome.drawn) == (PLANNED // 2, PLANNED // 2)


class StrictGrader(IntegerGrader):
    """Finds nothing right."""

    def grade(self, problem, answer, *, is_truncated):
        return dataclasses.replace(super().grade(problem, answer, is_truncated=is_truncated), verdict="wrong")


def test_a_new_grader_grades_stored_samples_without_drawing(tmp_path):
    path = tmp_path / "r.sqlite"
    run(path, RuleClient(TASKS))
    client = RuleClient(TASKS)
    strict = [dataclasses.replace(task, grader=StrictGrader(grader_id="strict/1")) for task in TASKS]
    outcome, report, _ = run(path, client, tasks=strict)
    assert outcome.drawn == 0
    assert [mode["score"]["value"] for mode in report["tasks"][0]["modes"]] == [0.0, 0.0]
    _, before, _ = run(path, RuleClient(TASKS))
    assert before["tasks"][0]["modes"][1]["score"]["value"] == 1.0


def test_one_mode_alone(tmp_path):
    modes = ModesSection.model_validate({"none": None, "high": {"max_tokens": 64}})
    outcome, report, _ = run(tmp_path / "r.sqlite", RuleClient(TASKS), modes=modes)
    assert outcome.drawn == PLANNED // 2
    assert [mode["mode"] for mode in report["tasks"][0]["modes"]] == ["high"]


def test_no_mode_is_refused():
    with pytest.raises(EvaluationError, match="both modes"):
        make_plans(TASKS, ModesSection.model_validate({"none": None, "high": None}))


def test_answers_that_utf8_cannot_hold_are_stored(tmp_path):
    class Surrogate(RuleClient):
        def _answer(self, request):
            return dataclasses.replace(super()._answer(request), answer="\ud800 \\boxed{1}")

    _, report, (none, _) = run(tmp_path / "r.sqlite", Surrogate(TASKS))
    assert report["complete"]
    with ResultStore.read(tmp_path / "r.sqlite") as store:
        assert store.texts(none[0]).answer == "? \\boxed{1}"


def test_a_box_in_the_thinking_is_no_answer(tmp_path):
    """Only the final answer is graded: the right box inside the thinking, and none or a wrong one after it."""

    class Boxes(RuleClient):
        def _answer(self, request):
            thinking = f"so \\boxed{{{self._golds[request.problem_id]}}}"
            return dataclasses.replace(
                super()._answer(request), thinking=thinking, answer="\\boxed{-1}" if request.sample_index else "done"
            )

    _, report, (_, high) = run(tmp_path / "r.sqlite", Boxes(TASKS))
    assert {(sample.sample_index, sample.verdict, sample.extracted) for sample in high} == {(0, "no-answer", None), (1, "wrong", "-1")}
    assert {sample.opinion for sample in high} == {"wrong"}
    assert report["tasks"][0]["modes"][1]["verdicts"]["no-answer"] == 6


def test_a_plan_holds_the_task_it_came_from():
    plans = make_plans(TASKS, both_modes())
    assert all(isinstance(plan, Plan) and plan.task is TASKS[0] for plan in plans)
    assert [plan.evaluation.mode for plan in plans] == ["none", "high"]


def test_what_two_tasks_share_is_drawn_once_and_graded_for_both(tmp_path):
    """Overlapping windows of one benchmark: the second task has the first one's last problems, and grades them its own way."""
    (task,) = TASKS
    window = dataclasses.replace(task, name="window", problems=task.problems[3:], grader=StrictGrader(grader_id="strict/1"))
    client = RuleClient(TASKS)
    outcome, report, samples = run(tmp_path / "r.sqlite", client, tasks=[task, window])
    assert (outcome.drawn, len(client.asked)) == (PLANNED, PLANNED)
    assert report["complete"]
    assert [len(group) for group in samples] == [12, 12, 6, 6]
    assert {sample.verdict for sample in samples[3]} == {"wrong"}
    assert {sample.verdict for sample in samples[1]} == {"correct"}
    outcome, _, _ = run(tmp_path / "r.sqlite", RuleClient(TASKS), tasks=[task, window])
    assert outcome.drawn == 0


def test_two_tasks_that_ask_one_problem_in_different_words_are_refused(tmp_path):
    """Samples go by the problem's name within a run: the second task would get none, and nobody would say so."""
    (task,) = TASKS
    other = dataclasses.replace(task, name="other", instruction="Answer in French.")
    with pytest.raises(EvaluationError, match="different words"):
        run(tmp_path / "r.sqlite", RuleClient(TASKS), tasks=[task, other])
    for number, tasks in enumerate([[task], [other]]):
        outcome, _, _ = run(tmp_path / "r.sqlite", RuleClient(TASKS), tasks=tasks)
        assert outcome.drawn == PLANNED, f"one after the other they share nothing ({number})"


def test_modes_with_equal_sampling_stay_apart(tmp_path):
    same = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 64}
    modes = ModesSection.model_validate({"none": same, "high": same})
    outcome, report, (none, high) = run(tmp_path / "r.sqlite", RuleClient(TASKS), modes=modes)
    assert (outcome.drawn, len(none), len(high)) == (PLANNED, PLANNED // 2, PLANNED // 2)
    assert {sample.sample_id for sample in none}.isdisjoint(sample.sample_id for sample in high)
    assert {bool(sample.thinking_chars) for sample in none} == {False}
    assert {sample.verdict for sample in high} == {"correct"} != {sample.verdict for sample in none}
    assert report["complete"]


def test_repeated_samples_without_chance_are_named():
    cold = ModesSection.model_validate({"none": {"temperature": 0.0}, "high": {"temperature": 0.7}})
    (note,) = repeat_notes(make_plans(TASKS, cold))
    assert "mode none" in note
    assert repeat_notes(make_plans(arithmetic_tasks(problems=2, samples=1), cold)) == []
