"""What is written reads back the same, here and with ruamel's loader (the oracle)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ms4_train.config.nodes import to_document
from ms4_train.config.render import render_yaml
from ms4_train.untrusted import parse_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    [
        "no",
        "1",
        "6e-5",
        "null",
        "~",
        "",
        " a",
        "a: b",
        "#x",
        "- a",
        "a\nb",
        "true",
        ".inf",
        "0x1",
        "'",
        '"',
        "\\",
        "=",
        "<<",
        "2026-01-01",
        "\x85",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=250, deadline=None)
@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_reads_back_the_same(value):
    text = render_yaml(value)
    assert to_document(parse_yaml(text)).values == value
    assert YAML(typ="safe", pure=True).load(text) == value


@pytest.mark.parametrize("word", ["no", "On", "YES", "off", "y"])
def test_words_that_older_readers_take_for_booleans_are_quoted(word):
    assert render_yaml({"a": word}) == f'a: "{word}"\n'


def test_layout():
    value = {"a": {"b": [], "c": {}}, "d": [{"x": 1, "z": [2]}, [3, 4]], "e": "plain/path.jsonl", "f": 6e-5}
    expected = "a:\n  b: []\n  c: {}\nd:\n  - x: 1\n    z:\n      - 2\n  -\n    - 3\n    - 4\ne: plain/path.jsonl\nf: 6e-05\n"
    assert render_yaml(value) == expected
