"""Every kind of wrong value gives a sentence with key and fix; none falls through to pydantic's own words."""

from __future__ import annotations

import pytest

from ms4_train.config.load import validate
from ms4_train.config.nodes import Document
from ms4_train.config.problems import combine
from ms4_train.config.schema import SftRun
from ms4_train.errors import ConfigError


def base():
    return {"recipe": "sft", "output_dir": "out", "model": {"path": "m"}, "data": {"train": [{"path": "a"}]}, "training": {}}


def problem(path, value):
    values = base()
    here = values
    for part in path[:-1]:
        here = here.setdefault(part, {}) if isinstance(here, dict) else here[part]
    here[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        validate(Document(values, {(): 1}, "run.yaml"), SftRun)
    return caught.value


def test_control_the_base_is_valid():
    assert validate(Document(base()), SftRun).output_dir == "out"


@pytest.mark.parametrize(
    ("path", "value", "message", "fix"),
    [
        (("model", "path"), 123, "123 is not text.", "put it in quotes: '123'."),
        (("model", "path"), True, "true is not text.", "write text."),
        (("model", "path"), None, "null is not text.", "write text."),
        (("model", "path"), ["a"], "a list is not text.", "write text."),
        (("model", "dtype"), "fp8", "the text 'fp8' is not one of the choices.", "write 'float32' or 'bfloat16'."),
        (("parallel", "zero_stage"), 4, "4 is not one of the choices.", "write 0, 1, 2 or 3."),
        (("data", "packing"), "no", "the text 'no' is not a boolean.", "write false."),
        (("data", "packing"), "Yes", "the text 'Yes' is not a boolean.", "write true."),
        (("data", "packing"), 1, "1 is not a boolean.", "write true or false."),
        (("seed",), "1_000", "the text '1_000' is not a whole number.", "write 1000."),
        (("seed",), 1.5, "1.5 is not a whole number.", "write a whole number without quotes, such as 100."),
        (("seed",), -1, "-1 is out of range.", "write a number at least 0."),
        (("seed",), 2**31, "2147483648 is out of range.", "write a number less than 2147483648."),
        (("seed",), True, "true is not a whole number.", "write a whole number without quotes, such as 100."),
        (("training", "learning_rate"), "fast", "the text 'fast' is not a number.", "write a number without quotes, such as 0.1 or 6e-5."),
        (("training", "learning_rate"), 0, "0 is out of range.", "write a number greater than 0."),
        (("training", "learning_rate"), float("inf"), "inf is not a finite number.", "write a finite number."),
        (("training", "learning_rate"), float("nan"), "nan is not a finite number.", "write a finite number."),
        (("training", "warmup_ratio"), 2, "2 is out of range.", "write a number at most 1."),
        (("training",), None, "null stands where a section belongs.", "indent keys below it (adam_beta1,"),
        (("model",), "folder", "the text 'folder' stands where a section belongs.", "indent keys below it (adapter, dequantize, dtype,"),
        (("data", "train"), [], "the list is empty.", "give at least 1 entry."),
        (("data", "train"), "rows.jsonl", "the text 'rows.jsonl' is not a list.", "write entries that start with '- ', or [a, b]."),
        (("data", "train", 0), "rows.jsonl", "the text 'rows.jsonl' stands where a section belongs.", "indent keys below it (fields,"),
        (("data", "train", 0, "weigth"), 1, "unknown key.", "did you mean weight?"),
        (("adapter", "target_modules"), [], "target_modules and target_parameters are both empty.", "name at least one target."),
    ],
)
def test_words(path, value, message, fix):
    error = problem(path, value)
    assert error.message == message
    assert (error.fix or "").startswith(fix)
    assert error.file == "run.yaml"
    key = path[:-1] if path[-1] == "target_modules" else path  # a rule between two keys is reported at their section
    assert error.key == ".".join(map(str, key))


def test_a_missing_key_names_its_section():
    values = base()
    del values["model"]["path"]
    del values["output_dir"]
    with pytest.raises(ConfigError) as caught:
        validate(Document(values, {(): 1, ("model",): 4}, "run.yaml"), SftRun)
    assert str(caught.value) == (
        "run.yaml: 2 problems:\n"
        "  run.yaml:1: output_dir: this key is missing. Fix: add 'output_dir:' at the top level.\n"
        "  run.yaml:4: model.path: this key is missing. Fix: add 'path:' under model."
    )


def test_long_values_are_cut():
    assert len(problem(("model", "dtype"), "x" * 10_000).message) < 150


def test_one_problem_stands_alone():
    only = ConfigError("x.")
    assert combine([only], "f") is only
