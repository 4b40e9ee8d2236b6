"""Overrides reach every place the file could, and say what is wrong with themselves."""

from __future__ import annotations

import pytest

from ms4_train.config.evaluation import EvalRun
from ms4_train.config.overrides import apply_overrides, parse_override
from ms4_train.config.schema import SftRun
from ms4_train.errors import ConfigError

BASE = {"recipe": "sft", "data": {"train": [{"path": "a"}]}, "training": {"learning_rate": 1.0}}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("a.b=1", ("a", "b"), 1),
        ("a=6e-5", ("a",), 6e-5),
        ("a=no", ("a",), "no"),
        ("a='1'", ("a",), "1"),
        ("a=[1, x, {b: null}]", ("a",), [1, "x", {"b": None}]),
        ("a={b: 1}", ("a",), {"b": 1}),
        ("a={}", ("a",), {}),
        ("a=", ("a",), None),
        ("a=null", ("a",), None),
        ("a=b=c", ("a",), "b=c"),
        ("a=#1", ("a",), "#1"),
        ("a.0.b=x", ("a", 0, "b"), "x"),
        ("a=/tmp/x y", ("a",), "/tmp/x y"),
    ],
)
def test_parse(text, path, value):
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["a", "", "=1", "a..b=1", ".a=1", "a=[1", "a=*x", "a=b: c: d", "a=!t 1"])
def test_malformed(text):
    with pytest.raises(ConfigError) as caught:
        parse_override(text)
    assert str(caught.value).startswith(f"override {text}")
    assert caught.value.fix


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["training.learning_rate=2"], ("training", "learning_rate"), 2),
        (["training.learning_rate=2", "training.learning_rate=3"], ("training", "learning_rate"), 3),
        (["adapter.r=8"], ("adapter", "r"), 8),
        (["adapter={r: 8}", "adapter=null"], ("adapter",), None),
        (["adapter=null", "adapter.r=4"], ("adapter", "r"), 4),
        (["data.train.0.path=b"], ("data", "train", 0, "path"), "b"),
        (["data.train.1.path=b"], ("data", "train", 1, "path"), "b"),
        (["data.validation.0.path=v"], ("data", "validation", 0, "path"), "v"),
        (["data.train.0.fields.messages=x"], ("data", "train", 0, "fields", "messages"), "x"),
        (["tracking.wandb.tags=[a, b]"], ("tracking", "wandb", "tags"), ["a", "b"]),
        (["tracking.wandb.tags.0=a"], ("tracking", "wandb", "tags", 0), "a"),
    ],
)
def test_apply(overrides, path, value):
    values, places = apply_overrides(BASE, SftRun, overrides)
    for part in path:
        values = values[part]
    assert values == value
    assert overrides[-1] in places.values()


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("endpoint.extra_body.seed=null", {"seed": None, "top_k": 1}),
        ("endpoint.extra_body.chat_template_kwargs.effort=high", {"top_k": 1, "chat_template_kwargs": {"effort": "high"}}),
        ("endpoint.extra_body.top_k=2", {"top_k": 2}),
    ],
)
def test_a_section_of_free_keys_takes_any_key(text, body):
    values, _ = apply_overrides({"recipe": "eval", "endpoint": {"extra_body": {"top_k": 1}}}, EvalRun, [text])
    assert values["endpoint"]["extra_body"] == body


def test_the_original_stays_as_it_was():
    apply_overrides(BASE, SftRun, ["data.train.0.path=b", "data.train.1.path=c"])
    assert BASE["data"] == {"train": [{"path": "a"}]}


def test_a_later_override_of_a_section_takes_over_its_places():
    _, places = apply_overrides(BASE, SftRun, ["training.max_steps=1", "training={}"])
    assert places == {("training",): "training={}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.learning_rat=1", "learning_rat: unknown key. Fix: did you mean learning_rate?"),
        ("trainin.learning_rate=1", "trainin: unknown key. Fix: did you mean training?"),
        ("learning_rate=1", "belongs at training.learning_rate"),
        ("seed.x=1", "seed.x: unknown key. Fix: remove it."),
        ("data.train.path=b", r"data.train is a list. Fix: name an entry: data.train.0.path."),
        ("data.train.5.path=b", r"the list has 1 entry. Fix: use an index from 0 to 1"),
        ("training.0=b", "training is not a list"),
        ("recipe.0=b", "recipe is not a list"),
    ],
)
def test_unknown_places(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        apply_overrides(BASE, SftRun, [text])
    assert caught.value.file == f"override {text}"


def test_a_broken_file_under_an_override_is_reported():
    for values in ({"data": "x"}, {"data": {"train": "x"}}, {"data": {"train": ["x"]}}):
        with pytest.raises(ConfigError, match=r"is not a (section|list) in the file"):
            apply_overrides(values, SftRun, ["data.train.0.path=b"])
