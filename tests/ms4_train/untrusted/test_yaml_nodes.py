"""YAML trees against ruamel's own loader (the oracle for structure), and against bombs."""

from __future__ import annotations

import contextlib
import resource
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import YamlMapping, YamlNode, YamlScalar, YamlSequence, parse_yaml

ALIAS_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def texts(node: YamlNode) -> object:
    """The tree with every scalar as text."""
    if isinstance(node, YamlScalar):
        return node.text
    if isinstance(node, YamlSequence):
        return [texts(item) for item in node.items]
    return {key: texts(item) for key, item in node.items.items()}


SOURCE = """\
# comment
recipe: sft   # more
model: {path: "a b", list: [1, 2, {x: y}]}
data:
  train:
  - path: rows.jsonl
    text: |
      two
      lines
  - 'no'
folded: >-
  one
  paragraph
"""


def test_structure_equals_ruamels_own_loader():
    loaded = YAML(typ="base", pure=True).load(SOURCE)  # 'base': every scalar stays text
    assert texts(parse_yaml(SOURCE)) == loaded


def test_lines_and_quotes():
    root = parse_yaml(SOURCE)
    assert isinstance(root, YamlMapping)
    assert root.key_lines == {"recipe": 2, "model": 3, "data": 4, "folded": 11}
    train = root.items["data"].items["train"]  # type: ignore[union-attr]
    assert train.items[1] == YamlScalar(10, "no", plain=False)
    assert root.items["recipe"] == YamlScalar(2, "sft", plain=True)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (ALIAS_BOMB, 1, "aliases"),
        ("a: 1\nb: *a", 2, "aliases"),
        ("a: &x 1", 1, "anchors"),
        ("x: 1\na: 1\nb: 2\na: 3", 4, "'a' stands twice.*line 2"),
        ("a: {b: 1, b: 2}", 1, "'b' stands twice"),
        ("a:\n  !!python/object/apply:os.system ['x']", 2, "tags"),
        ("a: !x 1", 1, "tags"),
        ("!!map {}", 1, "tags"),
        ("a: 1\n---\nb: 2", 2, "second document"),
        ("%YAML 1.1\n---\na: 1", 2, "directive"),
        ("%TAG ! x:\n---\na: 1", 2, "directive"),
        ("? [a, b]\n: 1", 1, "key that is a list"),
        ("? {a: b}\n: 1", 1, "key that is a list or a mapping"),
        ("[" * 100_000, 1, "deeper than 32"),
        ("{a: " * 40, 1, "deeper than 32"),
        ("- " * 1000, 1, "deeper than 32"),
        ("? " * 1000, 1, "key|deeper"),
        ("a:\n  - 1\n" + "  - 1\n" * 25_000, None, "more than 20,000"),
        ("a: " + "x" * (1 << 20), None, "more than 1,048,576"),
        ("a: b: c", 1, "mapping values"),
        ("a: 1\n\tb: 2", 2, "invalid YAML"),
        ("a: 1\nb: 'x", 2, "end of stream"),
        ("a: 1\nb: \x00", 2, "unacceptable character"),
        ("a: \ud800", 1, "unacceptable character"),
        ("a: [1, 2", 1, "invalid YAML"),
        ("%YAML 9.9\n---\na", 1, "incompatible"),
    ],
)
def test_refused_with_the_line(text, line, message):
    started = time.process_time()
    with pytest.raises(UntrustedInputError, match=message) as caught:
        parse_yaml(text, file="run.yaml")
    assert caught.value.file == "run.yaml"
    if line is not None:
        assert caught.value.line == line
    assert time.process_time() - started < 4


def test_control_a_usual_loader_swallows_duplicates_and_bombs():
    loader = YAML(typ="safe", pure=True)
    loader.allow_duplicate_keys = True
    assert loader.load("a: 1\na: 3")["a"] in (1, 3)
    assert len(YAML(typ="safe", pure=True).load(ALIAS_BOMB)["i"]) == 9  # 9^9 leaves behind nine references


def test_a_bomb_takes_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in (ALIAS_BOMB, "[" * 100_000, "a: " + "x" * 1_000_000, "# c\n" * 200_000):
        with contextlib.suppress(UntrustedInputError):
            parse_yaml(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kilobytes


def test_empty_documents_are_empty_mappings():
    for text in ("", "\n", "# only a comment\n", "---\n", b"\xef\xbb\xbf"):
        assert texts(parse_yaml(text)) == {}


def test_crlf_and_byte_order_mark_are_fine():
    root = parse_yaml(b"\xef\xbb\xbfa: 1\r\nb:\r\n  - x\r\n")
    assert texts(root) == {"a": "1", "b": ["x"]}
    assert isinstance(root, YamlMapping)
    assert root.key_lines == {"a": 1, "b": 2}


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("ab:-[]{}&*!?|>'\"%@`#,\n \t\\0.~\ufeff\x85\u2028é"), max_size=60)
    | st.text(max_size=60)
    | st.binary(max_size=60)
)
def test_only_typed_errors_escape_from_noise(text):
    with contextlib.suppress(UntrustedInputError):
        parse_yaml(text, file="f")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_only_typed_errors_escape_from_damaged_yaml(data):
    text = list(SOURCE)
    for _ in range(data.draw(st.integers(1, 5))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.characters())
    with contextlib.suppress(UntrustedInputError):
        parse_yaml("".join(text))
