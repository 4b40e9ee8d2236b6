"""The schema's own key list (pydantic's JSON Schema) is the oracle for the walk over types."""

from __future__ import annotations

import pytest

from ms4_train.config.evaluation import AimeTask, ArithmeticTask, EvalRun, LcrTask, LiveCodeBenchTask
from ms4_train.config.keys import annotations_at, known_keys, places_of, unknown_key_fix
from ms4_train.config.schema import SftRun


@pytest.mark.parametrize("model", [SftRun, EvalRun])
def test_known_keys_equal_the_json_schema_everywhere(model):
    schema = model.model_json_schema()
    visited = 0

    def compare(node, path):
        nonlocal visited
        for option in node.get("anyOf", []):
            compare(option, path)
        if "$ref" in node:
            compare(schema["$defs"][node["$ref"].split("/")[-1]], path)
        elif node.get("type") == "array" and "oneOf" not in node["items"]:  # one of several sections: covered below
            compare(node["items"], (*path, 0))
        elif "properties" in node:
            visited += 1
            assert known_keys(model, path) == sorted(node["properties"])
            for key, child in node["properties"].items():
                compare(child, (*path, key))

    compare(schema, ())
    assert visited >= 6


SECTIONS = [AimeTask, ArithmeticTask, LiveCodeBenchTask, LcrTask]


def test_the_discriminator_chooses_among_sections():
    assert annotations_at(EvalRun, ("tasks", 0)) == SECTIONS
    assert known_keys(EvalRun, ("tasks", 0), {"task": "aime"}) == sorted(AimeTask.model_fields)
    assert known_keys(EvalRun, ("tasks", 0), {"task": "arithmetic"}) == sorted(ArithmeticTask.model_fields)
    assert set(known_keys(EvalRun, ("tasks", 0))) == {key for section in SECTIONS for key in section.model_fields}


def test_places_that_do_not_exist():
    for path in (("model", 0), ("nope",), ("model", "path", "x"), ("data", "train", "path"), ("seed", "x")):
        assert annotations_at(SftRun, path) == []


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        (("training", "learning_ratee"), "did you mean learning_rate?"),
        (("training", "lr"), "remove it; the keys allowed here are "),
        (("learning_rate",), "this key belongs at training.learning_rate."),
        (("training", "target_modules"), "this key belongs at adapter.target_modules."),
        (("data", "train", 0, "steaming"), "did you mean streaming?"),
    ],
)
def test_fix_for_an_unknown_key(path, fix):
    assert unknown_key_fix(SftRun, path).startswith(fix)


def test_places_of_a_key():
    assert places_of(SftRun, "reasoning_effort") == [
        "data.train.0.reasoning_effort",
        "data.train.0.fields.reasoning_effort",
        "data.validation.0.reasoning_effort",
        "data.validation.0.fields.reasoning_effort",
    ]
