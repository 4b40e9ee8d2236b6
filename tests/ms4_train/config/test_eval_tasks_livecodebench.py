"""LiveCodeBench's section: releases and windows that belong together, days that exist."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ms4_train.config import load_run
from ms4_train.config.eval_tasks import LiveCodeBenchTask
from ms4_train.config.evaluation import EvalRun
from ms4_train.errors import ConfigError


def section(**values: object) -> LiveCodeBenchTask:
    return LiveCodeBenchTask.model_validate({"task": "livecodebench", **values})


@pytest.mark.parametrize(
    ("values", "release"),
    [
        ({}, "v6"),
        ({"window": "aa"}, "v5"),
        ({"window": "v5"}, "v5"),
        ({"window": "v6"}, "v6"),
        ({"window": "aa", "release": "v6"}, "v6"),
        ({"release": "v2"}, "v2"),
        ({"start_date": "2024-08-01"}, "v6"),
        ({"release": "v5", "start_date": "2024-08-01", "end_date": "2024-08-01"}, "v5"),
    ],
)
def test_the_release_follows_the_window(values, release) -> None:
    assert section(**values).effective_release == release


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": "v5", "release": "v6"}, "window v5 is published for release v5, not v6"),
        ({"window": "v6", "release": "v5"}, "window v6 is published for release v6, not v5"),
        ({"window": "aa", "release": "v4"}, "window aa is published for release v5, not v4"),
        ({"window": "aa", "start_date": "2024-08-01"}, "not both"),
        ({"window": "aa", "end_date": "2024-08-01"}, "not both"),
        ({"start_date": "2024-08-02", "end_date": "2024-08-01"}, "is after"),
        ({"start_date": "2024-02-30"}, "there is no day 2024-02-30"),
        ({"end_date": "2024-13-01"}, "there is no day 2024-13-01"),
        ({"end_date": "1 August 2024"}, "there is no day 1 August 2024; write it as 2024-08-01"),
        ({"start_date": "2024-8-1"}, "there is no day 2024-8-1"),
        ({"start_date": "2024-W31-1"}, "there is no day 2024-W31-1"),
        ({"difficulties": []}, "at least 1"),
        ({"platforms": ["codechef"]}, "leetcode"),
        ({"release": "v7"}, "v6"),
        ({"prompt": "cot"}, "reasoning"),
    ],
)
def test_what_does_not_fit_is_refused(values, message) -> None:
    with pytest.raises(ValidationError, match=message):
        section(**values)


def test_dates_need_no_quotes_in_a_file(tmp_path) -> None:
    path = tmp_path / "eval.yaml"
    text = "recipe: eval\nmodel: {path: m}\ntasks:\n  - {task: livecodebench, start_date: 2024-08-01, end_date: 2024-08-31}\n"
    path.write_text(text)
    run = load_run(path)
    assert isinstance(run, EvalRun)
    task = run.tasks[0]
    assert isinstance(task, LiveCodeBenchTask)
    assert (task.start_date, task.end_date) == ("2024-08-01", "2024-08-31")
    path.write_text(text.replace("08-31", "08-32"))
    with pytest.raises(ConfigError, match="there is no day 2024-08-32") as caught:
        load_run(path)
    assert caught.value.file == str(path)
