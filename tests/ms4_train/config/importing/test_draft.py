"""Reading an outside file value by value, and writing our run key by key."""

from __future__ import annotations

import pytest

from ms4_train.config.importing.draft import Draft
from ms4_train.config.nodes import to_document
from ms4_train.errors import ConfigError
from ms4_train.untrusted import parse_yaml

FILE = """\
word: text
number: 2e-4
whole: 3
yes_word: Yes
flag: false
list: [a, b]
empty:
section: {inner: 1}
sections: [{a: 1}, {b: 2}]
"""


@pytest.fixture
def draft():
    return Draft(to_document(parse_yaml(FILE), file="axolotl.yml"))


def test_values_of_every_type(draft):
    assert (draft.text("word"), draft.number("number"), draft.whole("whole"), draft.boolean("flag")) == ("text", 2e-4, 3, False)
    assert draft.boolean("yes_word") is True
    assert (draft.texts("list"), draft.texts("word")) == (["a", "b"], ["text"])
    assert (draft.section("section"), draft.sections("sections")) == ({"inner": 1}, 2)
    assert draft.whole("section", "inner") == 1
    assert draft.whole("sections", 1, "b") == 2
    for read in (draft.text, draft.number, draft.whole, draft.boolean, draft.texts):
        assert read("absent") is None
        assert read("empty") is None
        assert read("sections", 7, "a") is None
    assert (draft.section("empty"), draft.sections("empty")) == ({}, 0)


@pytest.mark.parametrize(
    ("read", "key", "line", "wanted"),
    [
        ("text", "whole", 3, "text"),
        ("number", "flag", 5, "a number"),
        ("number", "word", 1, "a number"),
        ("whole", "number", 2, "a whole number"),
        ("whole", "flag", 5, "a whole number"),
        ("boolean", "whole", 3, "true or false"),
        ("texts", "sections", 9, "a list of texts"),
        ("section", "list", 6, "a section"),
        ("sections", "list", 6, "a list of sections"),
    ],
)
def test_wrong_types_name_file_line_and_key(draft, read, key, line, wanted):
    with pytest.raises(ConfigError) as caught:
        getattr(draft, read)(key)
    assert str(caught.value).startswith(f"axolotl.yml:{line}: {key}: ")
    assert wanted in str(caught.value)


def test_put_makes_sections_and_lists(draft):
    draft.put("a", ("data", "train", 0, "path"), "x")
    draft.put("b", ("data", "train", 0, "fields", "messages"), "y")
    draft.put("c", ("data", "train", 1, "path"), "z")
    draft.put("d, e", ("training", "max_steps"), 3, "a note")
    assert draft.run == {"data": {"train": [{"path": "x", "fields": {"messages": "y"}}, {"path": "z"}]}, "training": {"max_steps": 3}}
    assert (draft.entries[-1].target, draft.entries[-1].words) == ("training.max_steps", "3 (a note)")
    assert draft.is_named("d")
    assert draft.is_named("e")
    assert not draft.is_named("f")


def test_a_warning_is_said_once(draft):
    draft.warn("x")
    draft.warn("x")
    assert draft.warnings == ["x"]
