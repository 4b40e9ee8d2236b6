"""Strict JSON against the standard parser (the oracle for what is valid) and against a gallery of hostile texts."""

from __future__ import annotations

import contextlib
import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import iter_json_lines, parse_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.booleans())
def test_reads_whatever_the_standard_writer_writes(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == json.loads(text) == value
    assert parse_json(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "NaN"),
        ('{"a": Infinity}', "Infinity"),
        ("[-Infinity]", "-Infinity"),
        ("1e999", "does not fit"),
        ('{"a": 1, "b": {"x": 1, "x": 1}}', "'x' stands twice"),
        ("9" * 5000, "number of 5000 characters"),
        ("0." + "1" * 5000, "number of 5002 characters"),
        ("[" * 200_000 + "]" * 200_000, "deeper than 64"),
        ("[" * 65 + "]" * 65, "deeper than 64"),
        ('{"a":' * 70 + "1" + "}" * 70, "deeper than 64"),
        (r'"\ud800"', "surrogate"),
        (r'{"\udfff": 1}', "surrogate"),
        ('"\ud800"', "surrogate"),
        ('{"a": 1,}', "invalid JSON"),
        ("{'a': 1}", "column 2"),
        ("", "column 1"),
        ("1 2", "Extra data"),
        ('"a\x00b"', "control character"),
        ("[1,\n2,\n3", "line|delimiter"),
    ],
)
def test_refused(text, message):
    with pytest.raises(UntrustedInputError, match=message):
        parse_json(text)


def test_control_the_standard_parser_lets_these_through():
    assert math.isnan(json.loads("NaN"))
    assert json.loads('{"x": 1, "x": 2}') == {"x": 2}
    assert json.loads(r'"\ud800"') == "\ud800"
    assert json.loads("1e999") == math.inf
    with pytest.raises(RecursionError):
        json.loads("[" * 200_000)


def test_depth_exactly_at_the_bound_is_read():
    assert parse_json("[" * 64 + "]" * 64) is not None
    assert parse_json("[" * 3 + "]" * 3, max_depth=3) == [[[]]]
    assert parse_json('["[[[[[[[["]', max_depth=1) == ["[[[[[[[["]  # brackets inside text are not depth


def test_paired_surrogate_escapes_are_text():
    assert parse_json(r'"\ud83d\ude00 \\ud800"') == "\U0001f600 \\ud800"


def test_errors_have_file_line_and_column():
    with pytest.raises(UntrustedInputError) as caught:
        parse_json('{"a": 1,\n "b": x}', file="f.json")
    assert (caught.value.file, caught.value.line) == ("f.json", 2)
    with pytest.raises(UntrustedInputError) as caught:
        parse_json("x", file="f.jsonl", line=17)
    assert caught.value.line == 17


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200))
def test_only_typed_errors_escape_from_noise(data):
    with contextlib.suppress(UntrustedInputError):
        parse_json(data)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.data())
def test_only_typed_errors_escape_from_damaged_json(value, data):
    raw = bytearray(json.dumps({"messages": [value]}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UntrustedInputError):
        json.dumps(parse_json(bytes(raw)), allow_nan=False).encode()


def test_lines_are_numbered_and_blank_ones_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \n{"a": 2}\n{"a": }\n\xff\n{"a": 3}')
    found = list(iter_json_lines(path))
    assert [line for line, _ in found] == [1, 4, 5, 6, 7]
    assert [value for _, value in found if isinstance(value, dict)] == [{"a": 1}, {"a": 2}, {"a": 3}]
    errors = [value for _, value in found if isinstance(value, UntrustedInputError)]
    assert [(error.line, error.file) for error in errors] == [(5, str(path)), (6, str(path))]


def test_a_line_too_long_is_skipped_and_reading_goes_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n"' + b"x" * 5_000_000 + b'"\n{"a": 2}\n')
    found = list(iter_json_lines(path, max_line_bytes=1000))
    assert [line for line, _ in found] == [1, 2, 3]
    assert "more than 1,000 bytes" in str(found[1][1])
    assert found[2][1] == {"a": 2}


def test_a_line_of_exactly_the_bound_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'"' + b"x" * 8 + b'"\n"y"')
    assert [value for _, value in iter_json_lines(path, max_line_bytes=10)] == ["x" * 8, "y"]


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(UntrustedInputError, match="no such file"):
        next(iter_json_lines(tmp_path / "absent.jsonl"))


def test_a_large_ordinary_row_is_quick():
    row = json.dumps({"messages": [{"role": "user", "content": "x[" * 1000}] * 500})
    started = time.monotonic()
    parse_json(row)
    assert time.monotonic() - started < 0.5  # 1 MB; a walk over characters in Python would take longer
