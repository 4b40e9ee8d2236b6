"""Reports: bytes that depend on the samples alone."""

import json

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes, shared_second_opinion

from ms4_evals.progress import Progress
from ms4_evals.report import build_report, file_name_part, rounded, write_report
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_train.errors import StorageError

TASKS = arithmetic_tasks(problems=5, samples=2)


def report_of(path, client):
    plans = make_plans(TASKS, both_modes())
    run = RunRecord("rule", client.identity(), 0)
    with ResultStore.open(path) as store:
        run_evaluations(client, store, plans, run, config={}, progress=Progress(), second_opinion=shared_second_opinion())
        return build_report(store, run, [plan.evaluation for plan in plans], confidence=0.95, resamples=100)


class Reversed(RuleClient):
    """Answers in the opposite order."""

    def answer(self, requests, on_finish, on_progress):
        super().answer(list(reversed(requests)), on_finish, on_progress)


def test_the_order_of_arrival_time_and_place_do_not_show(tmp_path):
    first, first_text = write_report(report_of(tmp_path / "a.sqlite", RuleClient(TASKS)), tmp_path / "one")
    second, second_text = write_report(report_of(tmp_path / "b" / "b.sqlite", Reversed(TASKS)), tmp_path / "two")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert first_text.read_bytes() == second_text.read_bytes()
    assert str(tmp_path) not in first.read_text() + first_text.read_text()


def test_the_numbers_of_a_report(tmp_path):
    report = report_of(tmp_path / "a.sqlite", RuleClient(TASKS))
    (task,) = report["tasks"]
    none, high = task["modes"]
    assert (report["complete"], task["problems"], none["planned"], high["graded"]) == (True, 5, 10, 10)
    assert high["score"]["value"] == 1.0
    assert task["high_minus_none"]["value"] == pytest.approx(1 - none["score"]["value"], abs=1e-6)
    assert high["lengths"]["thinking_chars"]["all"]["mean"] > none["lengths"]["thinking_chars"]["all"]["mean"] == 0
    assert json.loads(json.dumps(report)) == report


def test_rounding_reaches_every_number():
    assert rounded({"a": [1 / 3, {"b": 2 / 3}], "c": 7, "d": "x", "e": None}) == {
        "a": [0.333333, {"b": 0.666667}],
        "c": 7,
        "d": "x",
        "e": None,
    }


@pytest.mark.parametrize(
    ("label", "part"),
    [
        ("tiny + lora", "tiny-lora"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "run"),
        ("...", "run"),
        ("x" * 200, "x" * 60),
        ("a\0b\n", "a-b"),
    ],
)
def test_labels_become_safe_file_names(label, part):
    assert file_name_part(label) == part


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    report = report_of(tmp_path / "a.sqlite", RuleClient(TASKS))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        write_report(report, tmp_path / "file")
