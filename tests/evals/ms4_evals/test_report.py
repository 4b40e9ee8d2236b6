"""Reports: bytes that depend on the samples alone."""

import json

import pytest
from support.eval_client import RuleClient, arithmetic_tasks, both_modes, shared_second_opinion
from support.made_stores import PROGRAMS, failed_sample, made_evaluation, made_problems, made_run, right_or_wrong, write_store

from ms4_evals.graders.base import Grade
from ms4_evals.progress import Progress
from ms4_evals.report import build_report, file_name_part, write_report
from ms4_evals.runner import make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.token_counts import TOKENIZER_NAME
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


def test_what_differs_from_run_to_run_does_not_show(tmp_path):
    """Seconds, first tokens, attempts, endpoints and what graders measured: the same answers give the same bytes. A length, the control,
    does show."""
    evaluations = [
        made_evaluation("code", mode, problems=3, samples=2, grader_id=PROGRAMS, second_grader="official") for mode in ("none", "high")
    ]

    def written(name, chance, **values):
        def rule(evaluation, problem, index):
            details = {"class": "WA", "seconds": chance, "wall_seconds": chance * 2}
            run_dependent = {"seconds": chance, "first_token_seconds": chance / 2, "attempts": int(chance), "endpoint": f"http://{chance}"}
            opinion = "correct" if problem == 0 else "wrong"
            return run_dependent | {"cost": 0.5, "usage_tokens": 7} | values, Grade("wrong", "code", details=details, opinion=opinion)

        path = write_store(tmp_path / f"{name}.sqlite", {"made": rule}, evaluations)
        with ResultStore.read(path) as store:
            report = build_report(store, made_run(), evaluations, confidence=0.95, resamples=100)
        return [file.read_bytes() for file in write_report(report, tmp_path / name)]

    first = written("first", 1.25)
    assert written("second", 3.5) == first
    assert written("third", 1.25, answer="longer than before") != first


def test_the_numbers_of_a_report(tmp_path):
    report = report_of(tmp_path / "a.sqlite", RuleClient(TASKS))
    (task,) = report["tasks"]
    none, high = task["modes"]
    assert (report["complete"], task["problems"], none["planned"], high["graded"]) == (True, 5, 10, 10)
    assert (report["format"], report["token_counter"], report["allow_errors"]) == ("ms4-report/2", TOKENIZER_NAME, False)
    assert high["score"]["value"] == 1.0
    difference = task["high_minus_none"]
    assert difference["value"] == pytest.approx(1 - none["score"]["value"], abs=1e-6)
    assert difference["mcnemar"]["second_only"] == 0
    assert 0 < difference["sign_flip_p"] <= 1
    assert high["lengths"]["thinking_chars"]["all"]["mean"] > none["lengths"]["thinking_chars"]["all"]["mean"] == 0
    assert high["lengths"]["usage_tokens"]["all"]["count"] == 10
    assert json.loads(json.dumps(report)) == report


def test_errors_refuse_the_score_until_they_are_allowed(tmp_path):
    evaluations = [made_evaluation("t", mode, problems=4, samples=2) for mode in ("none", "high")]

    def rule(evaluation, problem, index):
        if evaluation.mode == "high" and problem == 0:
            return failed_sample("timeout") if index else ({}, None)
        return {}, Grade("correct", "1")

    path = write_store(tmp_path / "r.sqlite", {"made": rule}, evaluations)
    with ResultStore.read(path) as store:
        refused, allowed = (
            build_report(store, made_run(), evaluations, confidence=0.95, resamples=100, allow_errors=allow) for allow in (False, True)
        )
    (task,) = refused["tasks"]
    none, high = task["modes"]
    assert (none["score"]["value"], high["score"], task["high_minus_none"]) == (1.0, None, None)
    assert (high["left_out"], high["ungraded"], high["error_classes"], refused["complete"]) == (2, 1, {"timeout": 1}, False)
    (task,) = allowed["tasks"]
    assert (task["modes"][1]["score"]["value"], task["high_minus_none"]["problems"], allowed["complete"]) == (1.0, 3, False)


def test_two_columns_of_one_mode_have_no_difference(tmp_path):
    """The same task drawn at two temperatures in high: which of the two would be meant?"""
    problems = made_problems("t", 3)
    hot, cold = ({"temperature": heat, "top_p": 1.0, "max_tokens": 99} for heat in (0.7, 0.0))
    evaluations = [made_evaluation("t", mode, problems, sampling=values) for mode, values in (("high", hot), ("high", cold), ("none", hot))]
    path = write_store(tmp_path / "r.sqlite", {"made": right_or_wrong(lambda *_: True)}, evaluations)
    with ResultStore.read(path) as store:
        (task,) = build_report(store, made_run(), evaluations, confidence=0.95, resamples=100)["tasks"]
    assert [mode["mode"] for mode in task["modes"]] == ["high", "high", "none"]
    assert task["high_minus_none"] is None


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


def test_plots_lie_beside_the_report_that_shows_them(tmp_path):
    report = report_of(tmp_path / "a.sqlite", RuleClient(TASKS))
    path, text_path = write_report(report, tmp_path / "out", plots={"scores": b"image"})
    assert (tmp_path / "out" / f"{path.stem}-scores.png").read_bytes() == b"image"
    assert f"![scores]({path.stem}-scores.png)" in text_path.read_text()
