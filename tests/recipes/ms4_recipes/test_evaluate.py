"""The evaluation program on real files: what it returns, what identifies a run, and what it refuses."""

import dataclasses
import json

import pytest
from support.eval_files import eval_run, stored_texts, write_model, write_ones_adapter
from support.made_stores import made_evaluation, right_or_wrong, write_store

from ms4_evals.clients.engine import EngineClient
from ms4_evals.runner import Outcome
from ms4_evals.store.results import ResultStore
from ms4_recipes import evaluate
from ms4_train.errors import EngineError, EvaluationError, MS4Error

ONE_TASK = [{"task": "arithmetic", "kind": "digits", "problems": 3, "samples": 2}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("files") / "tiny")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    return write_ones_adapter(model, tmp_path_factory.mktemp("files") / "tuned" / "adapter")


def samples_of(store):
    with ResultStore.read(store) as reader:
        return {
            run.label: [sample for evaluation in reader.evaluations(run.run_id) for sample in reader.graded_samples(run.run_id, evaluation)]
            for run in reader.runs()
        }


def test_a_run_gives_a_report_and_a_second_one_draws_nothing(model, tmp_path, capsys):
    config = eval_run(model, tmp_path / "r.sqlite", tasks=ONE_TASK)
    path = evaluate.run(config)
    first = capsys.readouterr().out
    assert "12 samples drawn, 0 taken from the store" in first
    assert path.parent == tmp_path / "r-reports"
    report = json.loads(path.read_text())
    assert report["label"] == "tiny"
    assert [mode["planned"] for mode in report["tasks"][0]["modes"]] == [6, 6]
    assert path.with_suffix(".md").name in first.replace("\n", "")
    data = path.read_bytes()
    assert evaluate.run(config) == path
    assert "0 samples drawn, 12 taken from the store" in capsys.readouterr().out
    assert path.read_bytes() == data


def test_an_adapter_is_another_run_with_other_answers(model, adapter, tmp_path):
    store = tmp_path / "r.sqlite"
    for section in ({"path": str(model), "dtype": "float32"}, {"path": str(model), "dtype": "float32", "adapter": str(adapter)}):
        evaluate.run(eval_run(model, store, tasks=ONE_TASK, label=None, model=section))
    texts = stored_texts(store)
    assert set(texts) == {"tiny", "tiny + tuned/adapter"}
    plain, tuned = texts.values()
    assert plain != tuned


def test_what_cannot_be_used_is_one_clear_error(model, tmp_path):
    store = tmp_path / "r.sqlite"
    cases = [
        {"model": {"path": str(tmp_path / "none")}},
        {"model": {"path": str(model), "tokenizer": str(tmp_path / "tekken.json")}},
        {"model": {"path": str(model), "adapter": str(tmp_path / "none")}},
        {"tasks": [{"task": "arithmetic", "kind": "nope"}]},
        {"tasks": [{"task": "aime", "path": str(tmp_path)}]},
    ]
    for case in cases:
        with pytest.raises(MS4Error) as caught:
            evaluate.run(eval_run(model, store, **case))
        assert caught.value.fix
    assert not store.exists(), "nothing is begun that cannot be done"


def test_a_store_that_cannot_be_used_is_refused_before_the_model_is_read(model, tmp_path):
    """The model's folder holds no weights here, and yet it is the store that is named."""
    weightless = tmp_path / "model"
    weightless.mkdir()
    text = tmp_path / "notes.txt"
    text.write_text("not a database")
    folder = tmp_path / "folder"
    folder.mkdir()
    for store in (text, folder):
        with pytest.raises(EvaluationError, match="not a results store"):
            evaluate.run(eval_run(weightless, store))
    assert not (tmp_path / "folder.lock").exists()
    assert text.read_text() == "not a database"
    with ResultStore.open(tmp_path / "busy.sqlite"), pytest.raises(EvaluationError, match="another evaluation"):
        evaluate.run(eval_run(weightless, tmp_path / "busy.sqlite"))


def test_a_request_that_does_not_fit_is_refused_before_the_first_sample(model, tmp_path):
    store = tmp_path / "r.sqlite"
    with pytest.raises(EngineError, match="max_context"):
        evaluate.run(eval_run(model, store, tasks=ONE_TASK, engine={"max_context": 20}))
    assert samples_of(store) == {}, "a run that could not begin leaves nothing"


def test_errors_end_in_a_report_that_says_so_and_in_an_error(model, tmp_path, monkeypatch):
    """The answers of one problem are lost on their way; the rest of the path is real."""
    original = EngineClient._sample_answer

    def losing(self, completion, prompt):
        answer = original(self, completion, prompt)
        return dataclasses.replace(answer, error="lost", finish_reason="") if "/0001 high" in completion.request_id else answer

    config = eval_run(model, tmp_path / "r.sqlite", tasks=ONE_TASK)
    monkeypatch.setattr(EngineClient, "_sample_answer", losing)
    with pytest.raises(EvaluationError, match=r"2 of 12 samples .*One was unknown: lost.*Fix: run the same command again"):
        evaluate.run(config)
    (path,) = (tmp_path / "r-reports").glob("*.json")
    assert not json.loads(path.read_text())["complete"]
    monkeypatch.undo()
    evaluate.run(config)
    assert json.loads(path.read_text())["complete"]


def test_what_a_server_refuses_is_told_and_not_to_be_tried_again():
    report = {"complete": False, "tasks": [{"modes": [{"planned": 2, "graded": 0}]}]}
    outcome = Outcome(reused=0, drawn=2, errors=2)
    with pytest.raises(EvaluationError, match=r"One was refused: HTTP 400: too long") as caught:
        evaluate._refuse_errors(report, outcome, "r.sqlite", {"refused": "HTTP 400: too\nlong"})
    assert "max_tokens" in caught.value.fix
    assert "same command" not in caught.value.fix


def test_answers_of_a_server_are_not_given_to_another_label(tmp_path):
    """Two models may be served under one name, so another label may mean another model."""
    evaluation = made_evaluation("t", "none", 2, 1)
    rule = right_or_wrong(lambda *_: True)
    path = write_store(tmp_path / "r.sqlite", {"base": rule}, [evaluation])
    with ResultStore.read(path) as store:
        (known,) = store.runs()
        evaluate._refuse_another_label(store, known)
        with pytest.raises(EvaluationError, match="under the label base") as caught:
            evaluate._refuse_another_label(store, dataclasses.replace(known, label="tuned"))
        assert caught.value.fix.startswith("write label=base")
        evaluate._refuse_another_label(store, dataclasses.replace(known, label="tuned", seed=9))
    empty = write_store(tmp_path / "e.sqlite", {"base": lambda *_: None}, [evaluation])
    with ResultStore.read(empty) as store:
        evaluate._refuse_another_label(store, dataclasses.replace(known, label="tuned"))


def test_numbers_for_trackers(model, tmp_path):
    report = json.loads(evaluate.run(eval_run(model, tmp_path / "r.sqlite", tasks=ONE_TASK)).read_text())
    metrics = evaluate.flat_metrics(report)
    start = "eval/arithmetic_digits_6"
    assert {f"{start}/high_minus_none", f"{start}/high/score", f"{start}/none/total_chars", f"{start}/high/truncated"} <= set(metrics)
    assert all(isinstance(value, int | float) for value in metrics.values())
    lines = evaluate.headlines(report)
    assert lines[0] == report["tasks"][0]["title"]
    assert any("high - none" in line for line in lines)
