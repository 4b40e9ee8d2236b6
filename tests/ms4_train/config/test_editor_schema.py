"""The JSON Schema judged by the jsonschema package: it accepts what we accept and refuses what we refuse."""

from __future__ import annotations

import jsonschema
import pytest

from ms4_train.config import json_schema
from ms4_train.errors import ConfigError

SFT = {"recipe": "sft", "output_dir": "x", "model": {"path": "m"}, "data": {"train": [{"path": "a"}]}}
EVAL = {"recipe": "eval", "model": {"path": "m"}, "tasks": [{"task": "arithmetic"}]}


def test_is_a_schema():
    for recipe in (None, "sft", "eval"):
        jsonschema.Draft202012Validator.check_schema(json_schema(recipe))


@pytest.mark.parametrize("run", [SFT, EVAL])
def test_accepts_runs(run):
    jsonschema.validate(run, json_schema())
    jsonschema.validate(run, json_schema(run["recipe"]))


@pytest.mark.parametrize(
    "run", [{**SFT, "extra": 1}, {**SFT, "model": {}}, {**SFT, "recipe": "dpo"}, {**EVAL, "tasks": []}, {**EVAL, "output_dir": "x"}]
)
def test_refuses_what_we_refuse(run):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(run, json_schema())


def test_unknown_recipe():
    with pytest.raises(ConfigError, match="use one of sft, eval"):
        json_schema("dpo")
