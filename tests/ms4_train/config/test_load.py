"""A run file from bytes to a validated run: every problem at once, each with its line; resolved files load to the same run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms4_train.config import EvalRun, SftRun, load_run, to_yaml
from ms4_train.errors import ConfigError

GOOD = """\
recipe: sft
output_dir: runs/x
model:
  path: models/tiny
data:
  train:
    - path: rows.jsonl
      weight: 2
training:
  learning_rate: 6e-5
adapter:
  r: 8
"""
EVAL = """\
recipe: eval
model: {path: m}
tasks:
  - {task: aime, years: [2024], path: d}
  - {task: arithmetic}
modes: {none: null}
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
        return load_run(path, list(overrides))

    return load


def test_good_files(load):
    run = load(GOOD)
    assert isinstance(run, SftRun)
    assert (run.training.learning_rate, run.data.train[0].weight, run.adapter.r) == (6e-5, 2.0, 8)
    assert run.tracking.wandb.mode == "disabled"
    run = load(EVAL)
    assert isinstance(run, EvalRun)
    assert (run.modes.none, run.tasks[0].years, run.tasks[1].kind) == (None, [2024], "digits")


def test_every_problem_is_reported_at_once_with_its_line(load, tmp_path):
    bad = GOOD.replace("weight: 2", "weight: yes").replace("learning_rate", "learning_ratee").replace("  r: 8", "  r: 0\nextra: 1")
    with pytest.raises(ConfigError) as caught:
        load(bad)
    text = str(caught.value).replace(str(tmp_path), "DIR")
    assert text.splitlines() == [
        "DIR/run.yaml: 4 problems:",
        "  DIR/run.yaml:8: data.train.0.weight: the text 'yes' is not a number. Fix: write a number without quotes, such as 0.1 or 6e-5.",
        "  DIR/run.yaml:10: training.learning_ratee: unknown key. Fix: did you mean learning_rate?",
        "  DIR/run.yaml:12: adapter.r: 0 is out of range. Fix: write a number greater than 0.",
        "  DIR/run.yaml:13: extra: unknown key. Fix: remove it; the keys allowed here are adapter, data, evaluation, model, output_dir, "
        "parallel, recipe, seed, tracking, training.",
    ]


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("output_dir: x", 1, "recipe", "missing.*'recipe: sft' or 'recipe: eval' at the top level"),
        ("recipy: sft", 1, "recipe", "instead of 'recipy:'"),
        ("a: 1\nrecipe: dpo", 2, "recipe", "there is no recipe 'dpo'"),
        ("recipe: [sft]", 1, "recipe", "there is no recipe"),
        (GOOD + "seed: 1\nseed: 2\n", 14, None, "'seed' stands twice"),
        (GOOD.replace("runs/x", "&x y"), 2, None, "anchors"),
        (EVAL.replace("aime,", "aime, kind: digits,"), 4, "tasks.0.kind", "unknown key"),
        (EVAL.replace("task: arithmetic", "task: math"), 5, "tasks.1", "'math' is not one of the choices.*write task: aime or arithmetic"),
        (EVAL.replace("task: arithmetic", "limit: 1"), 5, "tasks.1", "key 'task' is missing"),
        (EVAL.replace("[2024]", "[2023]"), 4, "tasks.0.years.0", "2023 is not one of the choices"),
        ("", 1, "recipe", "missing"),
        (b"\xff\xfer\x00", 1, None, "UTF-16"),
    ],
)
def test_one_problem(load, text, line, key, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(text)
    assert (caught.value.line, caught.value.key) == (line, key)


def test_overrides_are_validated_and_named(load):
    assert load(GOOD, "training.learning_rate=1e-3", "seed=7").seed == 7
    with pytest.raises(ConfigError) as caught:
        load(GOOD, "training.learning_rate=fast")
    assert str(caught.value).startswith("override training.learning_rate=fast: training.learning_rate: the text 'fast' is not a number.")
    with pytest.raises(ConfigError, match="override recipe=nope: recipe: there is no recipe 'nope'"):
        load(GOOD, "recipe=nope")


def test_an_override_mends_a_broken_file(load):
    assert load(GOOD.replace("6e-5", "fast"), "training.learning_rate=1").training.learning_rate == 1


@pytest.mark.parametrize("text", [GOOD, EVAL])
def test_the_resolved_file_is_the_same_run(load, text):
    run = load(text)
    assert load(to_yaml(run)) == run


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_only_config_errors_escape(tmp_path_factory, data):
    source = data.draw(st.sampled_from([GOOD, EVAL]))
    words = source.split(" ")
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(words) - 1))
        choices = st.sampled_from(["1", "null", "{}", "[]", "x", "-1", "1e400", "", "\n", "- a", "'", "true", "path:\n"]) | st.text(
            max_size=4
        )
        words[position] = data.draw(choices)
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(" ".join(words), encoding="utf-8", errors="replace")
    try:
        load_run(path)
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017 (it may as well be valid)
