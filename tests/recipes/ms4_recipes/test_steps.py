"""Steps are announced with their command, timed, and added up; configurations are those of training."""

import io
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from ms4_recipes.steps import CONFIGS, Steps, shown, training_config
from ms4_train.errors import ConfigError


@dataclass
class Work(Steps):
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)


def test_steps_are_announced_and_timed():
    output = io.StringIO()
    work = Work(Console(file=output, width=60))
    with work.step("first", "ms4 train [x]"):
        pass
    with pytest.raises(ValueError, match="no"), work.step("second", "ms4 eval"):
        raise ValueError("no")
    assert "$ ms4 train [x]" in output.getvalue()
    assert list(work.seconds) == ["first"]  # one that failed did not take its time
    work.seconds = {"first": 1.04, "second": 2.0}
    work.console.print(work.times())
    assert "3.0" in output.getvalue()


def test_a_training_configuration_with_overrides():
    config = training_config(CONFIGS / "train" / "tiny_full.yaml", ["training.max_steps=3"])
    assert config.training.max_steps == 3
    with pytest.raises(ConfigError, match="is not a training configuration"):
        training_config(CONFIGS / "eval" / "arithmetic.yaml", [])


def test_files_are_shown_as_users_name_them():
    assert shown(CONFIGS / "train" / "tiny_full.yaml") == "configs/train/tiny_full.yaml"
