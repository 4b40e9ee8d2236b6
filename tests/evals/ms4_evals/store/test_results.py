"""The store: what goes in comes out, in an order that does not depend on arrival, and only where it belongs."""

import dataclasses
import sqlite3

import pytest
from support.eval_client import arithmetic_tasks, both_modes

from ms4_evals.graders.base import Grade
from ms4_evals.runner import make_plans
from ms4_evals.store.records import RunRecord, Sample
from ms4_evals.store.results import ResultStore
from ms4_train.errors import EvaluationError, StorageError

RUN = RunRecord("tiny", {"weights": "abc"}, 0)


@pytest.fixture
def evaluation():
    return make_plans(arithmetic_tasks(problems=3, samples=2), both_modes())[1].evaluation


def sample_of(evaluation, problem=0, index=0, **values):
    planned = evaluation.problems[problem]
    sample = Sample(
        problem_id=planned.problem_id,
        prompt_id=planned.prompt_id,
        mode=evaluation.mode,
        sampling_id=evaluation.sampling_id,
        sample_index=index,
        seed=2**63 - 1,
        prompt_hash="p",
        thinking="\x00 thinking \N{GREEK SMALL LETTER PI} \U0001f40d\r\n",
        answer=f"\\boxed{{{planned.gold}}}",
        thinking_is_open=0,
        thinking_tokens=5,
        answer_tokens=3,
        finish_reason="stop",
        seconds=1.5,
    )
    return dataclasses.replace(sample, **values)


def add(store, evaluation, problem=0, index=0, grade=Grade("correct", "1"), **values):  # noqa: B008
    sample = sample_of(evaluation, problem, index, **values)
    store.add(RUN.run_id, sample, grade, evaluation.problems[problem].grading_id)
    return sample


@pytest.fixture
def store(tmp_path, evaluation):
    with ResultStore.open(tmp_path / "r.sqlite") as opened:
        opened.register(RUN, {"a": 1}, {"torch": "2"}, [evaluation])
        yield opened


def test_a_sample_comes_back_as_it_was(store, evaluation):
    sample = add(store, evaluation, 1, 1, Grade("wrong", "x"))
    (found,) = store.graded_samples(RUN.run_id, evaluation)
    for field in dataclasses.fields(found):
        if hasattr(sample, field.name):
            assert getattr(found, field.name) == getattr(sample, field.name), field.name
    assert (found.verdict, found.extracted, found.opinion, found.gold) == ("wrong", "x", None, evaluation.problems[1].gold)
    texts = store.texts(found)
    assert (texts.thinking, texts.answer, texts.details) == (sample.thinking, sample.answer, None)


def test_what_the_grader_noted_comes_back(store, evaluation):
    details = {"class": "WA", "test": 3, "got": "\x00 \u2028", "nested": [1.5, None]}
    add(store, evaluation, grade=Grade("wrong", None, details, "correct"))
    (found,) = store.graded_samples(RUN.run_id, evaluation)
    assert store.texts(found).details == details
    assert found.opinion == "correct"


def test_a_sample_without_a_verdict_waits_for_one(store, evaluation):
    sample_id = store.add(RUN.run_id, sample_of(evaluation), None, evaluation.problems[0].grading_id)
    assert store.graded_samples(RUN.run_id, evaluation) == []
    assert [entry[0] for entry in store.ungraded(RUN.run_id, evaluation)] == [sample_id]
    store.add_grade(sample_id, evaluation.problems[0].grading_id, Grade("correct", "1"))
    assert store.ungraded(RUN.run_id, evaluation) == []
    assert len(store.graded_samples(RUN.run_id, evaluation)) == 1


def test_facts_and_configuration_come_back(tmp_path, evaluation):
    problems = tuple(dataclasses.replace(problem, facts={"month": "2024-08", "input_tokens": 7}) for problem in evaluation.problems)
    with ResultStore.open(tmp_path / "f.sqlite") as opened:
        opened.register(RUN, {"a": [1, {"b": None}]}, {}, [evaluation])
        opened.register(RUN, {"a": [1, {"b": None}]}, {}, [dataclasses.replace(evaluation, problems=problems)])
        assert opened.evaluations(RUN.run_id)[0].problems == problems
        assert opened.config(RUN.run_id) == {"a": [1, {"b": None}]}


def test_samples_stand_by_problem_and_index_whatever_order_they_came_in(store, evaluation):
    for problem, index in [(2, 1), (0, 1), (1, 0), (2, 0), (0, 0), (1, 1)]:
        add(store, evaluation, problem, index)
    found = [(sample.problem_id, sample.sample_index) for sample in store.graded_samples(RUN.run_id, evaluation)]
    assert found == [(problem.problem_id, index) for problem in evaluation.problems for index in (0, 1)]
    assert store.finished(RUN.run_id, evaluation) == set(found)


def test_a_finished_sample_cannot_be_written_twice(store, evaluation):
    add(store, evaluation)
    with pytest.raises(EvaluationError, match="UNIQUE"):
        add(store, evaluation)
    assert len(store.graded_samples(RUN.run_id, evaluation)) == 1


def test_an_error_is_not_finished_and_gives_way_to_an_answer(store, evaluation):
    add(store, evaluation, grade=Grade("error", None), error="no connection", answer="")
    assert store.finished(RUN.run_id, evaluation) == set()
    add(store, evaluation)
    (found,) = store.graded_samples(RUN.run_id, evaluation)
    assert (found.error, found.verdict) == (None, "correct")


def test_samples_of_other_runs_modes_samplings_and_prompts_stay_apart(store, evaluation):
    add(store, evaluation)
    none, high = (plan.evaluation for plan in make_plans(arithmetic_tasks(problems=3, samples=2), both_modes()))
    assert high == evaluation
    letters = make_plans(arithmetic_tasks(problems=3, samples=2, kind="letters"), both_modes())[1].evaluation
    cooler = make_plans(arithmetic_tasks(problems=3), both_modes().model_copy(update={"high": both_modes().none}))[1].evaluation
    store.register(RUN, {}, {}, [none, letters, cooler])
    assert store.finished(RUN.run_id, high)
    for other in (none, letters, cooler):
        assert not store.finished(RUN.run_id, other)
    assert not store.finished("another run", high)


def test_more_samples_or_fewer_keep_what_is_there(store, evaluation):
    add(store, evaluation, 0, 0)
    add(store, evaluation, 0, 1)
    more = dataclasses.replace(evaluation, samples=4)
    fewer = dataclasses.replace(evaluation, samples=1)
    assert len(store.finished(RUN.run_id, more)) == 2
    assert len(store.finished(RUN.run_id, fewer)) == len(store.graded_samples(RUN.run_id, fewer)) == 1


def test_another_grader_finds_the_samples_ungraded(store, evaluation):
    sample = add(store, evaluation)
    problems = tuple(dataclasses.replace(problem, grading_id="new") for problem in evaluation.problems)
    regraded = dataclasses.replace(evaluation, problems=problems, column_id="new column")
    store.register(RUN, {}, {}, [regraded])
    ((sample_id, planned, stored),) = store.ungraded(RUN.run_id, regraded)
    assert stored == sample
    assert planned == regraded.problems[0]
    assert not store.graded_samples(RUN.run_id, regraded)
    store.add_grade(sample_id, "new", Grade("wrong", None))
    assert not store.ungraded(RUN.run_id, regraded)
    assert store.graded_samples(RUN.run_id, regraded)[0].verdict == "wrong"
    assert store.graded_samples(RUN.run_id, evaluation)[0].verdict == "correct", "the old column keeps its verdicts"


def test_opinions(store, evaluation):
    add(store, evaluation)
    (sample,) = store.graded_samples(RUN.run_id, evaluation)
    store.set_opinions([("wrong", sample.sample_id, evaluation.problems[0].grading_id)])
    assert store.graded_samples(RUN.run_id, evaluation)[0].opinion == "wrong"


def test_runs_and_evaluations_come_back(store, evaluation):
    store.register(dataclasses.replace(RUN, label="new name"), {}, {"torch": "3"}, [evaluation])
    store.register(RUN, {}, {"torch": "2"}, [evaluation])
    with ResultStore.read(store.path) as reader:
        (run,) = reader.runs()
        assert run == RUN
        assert reader.evaluations(run.run_id) == [evaluation]
        assert reader.versions(run.run_id) == [{"torch": "2"}, {"torch": "3"}]


def test_what_fails_inside_a_transaction_leaves_nothing(store, evaluation):
    with pytest.raises(EvaluationError):
        store.add(RUN.run_id, sample_of(evaluation), Grade("correct", "1"), None)
    assert not store.finished(RUN.run_id, evaluation)
    assert store._connection.execute("SELECT count(*) FROM samples").fetchone() == (0,)


def test_a_full_disk_is_a_storage_error_and_the_store_stays_whole(store, evaluation):
    """SQLite's own page limit stands in for the disk: the same error code, at a moment of our choosing."""
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    add(store, evaluation, 0, 0, thinking="")
    with pytest.raises(StorageError, match="disk is full"):
        add(store, evaluation, 0, 1, thinking="x" * 200_000)
    store._connection.execute(f"PRAGMA max_page_count = {pages + 500}")
    add(store, evaluation, 0, 1, thinking="x" * 200_000)
    assert len(store.finished(RUN.run_id, evaluation)) == 2
    assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_second_writer_is_refused_and_readers_are_not(store):
    with pytest.raises(EvaluationError, match="another evaluation"), ResultStore.open(store.path):
        pass
    with ResultStore.read(store.path) as reader:
        assert reader.runs() == [RUN]


@pytest.mark.parametrize("change", ["mode = 'medium'", "sampling = '[1]'", 'sampling = \'{"max_tokens": "<b>"}\''])
def test_a_damaged_evaluation_is_refused(store, change):
    store._connection.execute(f"UPDATE evaluations SET {change}")
    with pytest.raises(EvaluationError, match="damaged"):
        store.evaluations(RUN.run_id)


def test_a_damaged_json_value_is_an_error_of_ours(store, evaluation):
    store._connection.execute("UPDATE runs SET model = '{\"a\": NaN}'")
    with pytest.raises(Exception, match="NaN") as caught:
        store.runs()
    assert str(store.path) in str(caught.value)
    assert not isinstance(caught.value, sqlite3.Error | ValueError)


def test_a_run_without_samples_is_forgotten_and_one_with_samples_is_not(store, evaluation):
    add(store, evaluation)
    other = RunRecord("other", {"weights": "xyz"}, 0)
    store.register(other, {}, {}, [evaluation])
    assert [run.label for run in store.runs()] == ["tiny", "other"]
    for run in (other, RUN):
        store.forget_if_empty(run.run_id)
    assert [run.label for run in store.runs()] == ["tiny"]
    assert len(store.graded_samples(RUN.run_id, evaluation)) == 1
    assert store.evaluations(RUN.run_id) == [evaluation]
