"""Evaluation beside training: an optional section of a training run, whose tasks are those of evaluation runs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ms4_train.config.eval_tasks import ArithmeticTask, TrainingEvaluation
from ms4_train.config.schema import SftRun

RUN = {"recipe": "sft", "output_dir": "o", "model": {"path": "m"}, "data": {"train": [{"path": "d"}]}}


def test_a_run_has_none_unless_it_asks() -> None:
    assert SftRun.model_validate(RUN).evaluation is None
    section = SftRun.model_validate({**RUN, "evaluation": {"steps": 5, "tasks": [{"task": "arithmetic"}]}}).evaluation
    assert isinstance(section, TrainingEvaluation)
    assert isinstance(section.tasks[0], ArithmeticTask)


@pytest.mark.parametrize("section", [{"steps": 5}, {"steps": 0, "tasks": [{"task": "aime"}]}, {"steps": 5, "tasks": []}])
def test_bounds(section) -> None:
    with pytest.raises(ValidationError):
        SftRun.model_validate({**RUN, "evaluation": section})
