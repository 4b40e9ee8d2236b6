"""Rows of files: what is read of them, where their private tests are, and how files that are not as they should be are refused."""

import hashlib
import json
import random
import re
import tracemalloc
from datetime import date

import pytest
from support.code_rows import code_row, code_test, recorded_rows, write_rows

from ms4_evals.tasks.livecodebench import rows as rows_module
from ms4_evals.tasks.livecodebench.rows import iter_rows
from ms4_train.errors import MS4Error


def span_bytes(row):
    with row.private_tests.file.open("rb") as file:
        file.seek(row.private_tests.offset)
        return file.read(row.private_tests.length)


def test_a_row(tmp_path):
    value = code_row("2727", function="addTwo", difficulty="hard", contest_date="2025-01-04T18:30:00")
    (row,) = iter_rows(write_rows(tmp_path / "f.jsonl", [value]))
    assert (row.question_id, row.title, row.statement) == ("2727", "Title of 2727", value["question_content"])
    assert (row.platform, row.difficulty, row.day, row.function) == ("leetcode", "hard", date(2025, 1, 4), "addTwo")
    assert (row.starter_code, row.public_tests) == (value["starter_code"], value["public_test_cases"])
    assert row.private_tests.line == 1
    assert span_bytes(row).decode() == value["private_test_cases"]
    assert row.private_tests.sha256 == hashlib.sha256(value["private_test_cases"].encode()).hexdigest()


@pytest.mark.data
def test_the_recorded_rows_are_read_as_a_json_parser_reads_them(data_folder, tmp_path):
    values = recorded_rows(data_folder, with_statements=False)
    values = [value if number % 2 else {**value, "private_test_cases": value["public_test_cases"]} for number, value in enumerate(values)]
    path = write_rows(tmp_path / "f.jsonl", values)
    found = list(iter_rows(path))
    assert len(found) == 880
    for row, value in zip(found, values, strict=True):
        assert json.loads(b'"' + span_bytes(row) + b'"') == value["private_test_cases"]
        assert (row.statement, row.starter_code, row.public_tests) == (
            value["question_content"], value["starter_code"], value["public_test_cases"],
        )  # fmt: skip
        assert row.function == json.loads(value["metadata"]).get("func_name")


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_pieces_of_any_size_give_the_same_rows(tmp_path, monkeypatch, piece, end):
    """Quotes, backslashes and the field's own name inside strings must not be taken for the end of anything, wherever a piece ends."""
    nasty = [
        code_test('"private_test_cases": "x', "\\"),
        code_test("\\\\\\", '"'),
        code_test('", "private_test_cases": "', "\u00e9\n"),
    ]
    values = [
        code_row("a", private_test_cases=json.dumps(nasty), question_content='The key "private_test_cases": "no" \\" is here.'),
        code_row("b", question_title='"private_test_cases"', starter_code='x = {"private_test_cases": "\\\\"}'),
        dict(reversed(code_row("c", private_test_cases="").items())),
        code_row("d", private_test_cases=json.dumps(nasty, ensure_ascii=False)),
    ]
    path = tmp_path / "f.jsonl"
    lines = [json.dumps(values[0]), "", json.dumps(values[1], separators=(",", ":")), json.dumps(values[2]), "  "]
    path.write_bytes("".join(line + end for line in lines).encode() + json.dumps(values[3], ensure_ascii=False).encode())
    monkeypatch.setattr(rows_module, "_PIECE_BYTES", piece)
    found = list(iter_rows(path))
    assert [row.question_id for row in found] == ["a", "b", "c", "d"]
    assert [row.private_tests.line for row in found] == [1, 3, 4, 6]
    for row, value in zip(found, values, strict=True):
        assert json.loads(b'"' + span_bytes(row) + b'"') == value["private_test_cases"]
        assert (row.title, row.statement, row.starter_code) == (value["question_title"], value["question_content"], value["starter_code"])


def test_memory_does_not_grow_with_private_tests(tmp_path):
    """A line of 60 MB; what is held meanwhile is a few pieces of a megabyte."""
    letters = "".join(random.Random(0).choices("abcdefgh+/", k=60_000)) * 1000
    path = write_rows(tmp_path / "f.jsonl", [code_row("a", private_test_cases=letters), code_row("b")])
    tracemalloc.start()
    found = list(iter_rows(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[0].private_tests.length == len(letters) == 60_000_000
    assert peak < 8 << 20


def without(key):
    return json.dumps({name: value for name, value in code_row().items() if name != key})


BAD = [
    (without("private_test_cases"), "private_test_cases"),
    (json.dumps(code_row(private_test_cases=["1"])), "private_test_cases"),
    (json.dumps(code_row(private_test_cases=None)), "private_test_cases"),
    (json.dumps({**code_row(private_test_cases=None), "inner": {"private_test_cases": "x"}}), "private_test_cases"),
    (json.dumps(code_row()).replace("private_test", "private\\u005ftest"), "private_test_cases"),
    (json.dumps(code_row())[:-1] + ', "private_test_cases": "[]"}', "twice"),
    ("[1, 2]", "object"),
    ('"private_test_cases": "x"', "JSON"),
    ("{", "JSON"),
    (json.dumps(code_row())[:-1], "JSON"),
    (json.dumps(code_row())[:200], "JSON"),
    (without("question_id"), "question_id"),
    (json.dumps({**code_row(), "question_id": 7}), "question_id"),
    (json.dumps(code_row("../etc")), "question_id"),
    (json.dumps(code_row("a/b")), "question_id"),
    (json.dumps(code_row("a" * 65)), "question_id"),
    (without("question_title"), "question_title"),
    (json.dumps(code_row(question_content=" \n")), "question_content"),
    (without("starter_code"), "starter_code"),
    (json.dumps(code_row(platform="codechef")), "codechef"),
    (json.dumps(code_row(difficulty="Easy")), "Easy"),
    (json.dumps(code_row(contest_date="August 2024")), "August"),
    (json.dumps(code_row(contest_date=20240801)), "contest_date"),
    (json.dumps(code_row(public_test_cases=[])), "public_test_cases"),
    (json.dumps(code_row(metadata="{")), "metadata"),
    (json.dumps(code_row(metadata="[]")), "func_name"),
    (json.dumps(code_row(metadata='{"func_name": "a.b"}')), "func_name"),
    (json.dumps(code_row(metadata='{"func_name": "f(); import os"}')), "func_name"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_bad_rows_are_refused_with_their_place(tmp_path, line, message):
    path = write_rows(tmp_path / "f.jsonl", [code_row("first"), line])
    with pytest.raises(MS4Error, match=re.escape(message)) as caught:
        list(iter_rows(path))
    assert f"{path}:2" in str(caught.value)
    assert caught.value.fix


def test_a_function_that_is_null_is_none(tmp_path):
    (row,) = iter_rows(write_rows(tmp_path / "f.jsonl", [code_row(metadata='{"func_name": null}')]))
    assert row.function is None


def test_a_line_that_ends_inside_the_private_tests_does_not_swallow_the_next(tmp_path):
    whole = json.dumps(code_row("a"))
    path = write_rows(tmp_path / "f.jsonl", [whole[: whole.index("private_test_cases") + 40], code_row("b")])
    with pytest.raises(MS4Error, match="a line ends inside private_test_cases"):
        list(iter_rows(path))
    path.write_text(whole[: whole.index("private_test_cases") + 40])
    with pytest.raises(MS4Error, match="the file ends inside private_test_cases"):
        list(iter_rows(path))


@pytest.mark.parametrize("field", ["question_content", "zz_after"])
def test_rows_beyond_the_bound_are_refused(tmp_path, monkeypatch, field):
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 3 << 20)
    path = write_rows(tmp_path / "f.jsonl", [code_row(**{field: "x" * (5 << 20)})])
    with pytest.raises(MS4Error, match="a row of more than"):
        list(iter_rows(path))


def test_a_file_must_hash_to_what_is_published(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [code_row("a"), code_row("b")])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(list(iter_rows(path, sha256=digest))) == 2
    path.write_bytes(path.read_bytes().replace(b"two integers", b"two integerz", 1))
    with pytest.raises(MS4Error, match="not the published one") as caught:
        list(iter_rows(path, sha256=digest))
    assert "delete it" in (caught.value.fix or "")


def test_missing_files(tmp_path):
    with pytest.raises(MS4Error, match="no such file"):
        list(iter_rows(tmp_path / "none.jsonl"))
