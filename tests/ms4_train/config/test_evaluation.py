"""The keys of evaluation runs that depend on each other: tasks are told apart, and a mode can be left out."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ms4_train.config.evaluation import AimeTask, ArithmeticTask, EvalRun


def run(**changes):
    return EvalRun.model_validate({"recipe": "eval", "model": {"path": "m"}, "tasks": [{"task": "aime"}], **changes}, strict=True)


def test_both_modes_run_unless_one_is_null():
    assert None not in (run().modes.none, run().modes.high)
    only_high = run(modes={"none": None}).modes
    assert only_high.none is None
    assert only_high.high is not None


def test_the_task_key_chooses_the_section():
    tasks = run(tasks=[{"task": "aime"}, {"task": "arithmetic", "problems": 3}]).tasks
    assert [type(task) for task in tasks] == [AimeTask, ArithmeticTask]
    with pytest.raises(ValidationError, match=r"tasks\.0\.aime\.problems"):
        run(tasks=[{"task": "aime", "problems": 3}])


@pytest.mark.parametrize("changes", [{"tasks": []}, {"tasks": [{"task": "aime", "years": []}]}, {"confidence": 0.5}, {"confidence": 1.0}])
def test_bounds(changes):
    with pytest.raises(ValidationError):
        run(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"model": None}, "there is no model"), ({"endpoint": {"servers": [{"base_url": "http://h/v1"}]}}, "both model and endpoint")],
)
def test_one_model_is_named(changes, words):
    with pytest.raises(ValidationError, match=words):
        run(**changes)
