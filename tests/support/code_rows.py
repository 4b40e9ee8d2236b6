"""Files in the form of LiveCodeBench's data set on the hub: from the recorded submissions of the test data, or made by hand.

The recorded data have public tests and, of failed submissions, one failing test; the failing test (or, without one, the public tests again)
stands in for the private tests, in the hub's encoding. Statements and starter codes are there for the 279 problems of the window v5.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

FILE_SIZES = {"test.jsonl": 400, "test2.jsonl": 111, "test3.jsonl": 101, "test4.jsonl": 101, "test5.jsonl": 167, "test6.jsonl": 175}
"""Rows of the published files."""


def pickled_text(text: str) -> bytes:
    """What ``pickle.dumps(text, protocol=4)`` gives, which is what the hub's rows hold; a test compares the two."""
    data = text.encode()
    head = b"\x8c" + struct.pack("<B", len(data)) if len(data) < 256 else b"X" + struct.pack("<I", len(data))
    body = head + data + b"\x94."
    frame = b"\x95" + struct.pack("<Q", len(body)) if len(data) < 64 << 10 else b""
    return b"\x80\x04" + frame + body


def encoded(tests: Sequence[dict[str, str]]) -> str:
    """Private tests as the hub's rows hold them."""
    return packed(pickled_text(json.dumps(list(tests))))


def packed(data: bytes) -> str:
    """Compressed, in base64."""
    return base64.b64encode(zlib.compress(data)).decode("ascii")


def code_test(given: str, expected: str, function: str | None = None) -> dict[str, str]:
    return {"input": given, "output": expected, "testtype": "functional" if function else "stdin"}


def code_row(question_id: str = "abc301_a", **values: Any) -> dict[str, Any]:
    """A row of the hub's form; ``values`` replace fields, and three are given plainly: ``public`` and ``private`` tests, ``function``."""
    function = values.pop("function", None)
    public = values.pop("public", [code_test("1 2\n", "3\n")])
    private = values.pop("private", [code_test("3 4\n", "7\n"), code_test("5 6\n", "11\n")])
    return {
        "question_title": f"Title of {question_id}",
        "question_content": "Print the sum of two integers.\r\n\n- 1 \\leq A \u2264 10",
        "platform": "leetcode" if function else "atcoder",
        "question_id": question_id,
        "contest_id": question_id.split("_")[0],
        "contest_date": "2024-08-03T00:00:00",
        "starter_code": f"class Solution:\n    def {function}(self, a: int, b: int) -> int:\n        " if function else "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(public),
        "private_test_cases": encoded(private),
        "metadata": json.dumps({"func_name": function} if function else {}),
        **values,
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    """Write rows (or ready-made lines) as a JSON lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")
    return path


def write_release(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a folder of ``test.jsonl``, ``test2.jsonl`` ... with the published numbers of rows, as many files as the rows fill."""
    left = list(rows)
    for name, size in FILE_SIZES.items():
        if left:
            write_rows(folder / name, left[:size])
            left = left[size:]
    return folder


@cache
def submissions(data_folder: Path) -> dict[str, dict[str, Any]]:
    """The recorded submissions: question id -> ``code``, ``official_pass``, tests and what else stands there."""
    with gzip.open(data_folder / "livecodebench" / "crosscheck_o1_mini.json.gz", "rt", encoding="utf-8") as file:
        return {row["question_id"]: row for row in json.load(file)}


@cache
def published_prompts(data_folder: Path) -> dict[str, dict[str, Any]]:
    """QwQ's prompts of the window v5: question id -> ``prompt``, ``contest_date`` and what else stands there."""
    with gzip.open(data_folder / "livecodebench" / "prompts_v5.jsonl.gz", "rt", encoding="utf-8") as file:
        return {row["question_id"]: row for row in map(json.loads, file)}


def statement_and_starter(prompt: str) -> tuple[str, str]:
    """The problem's text and its starter code (empty for none), cut out of one of those prompts."""
    question = prompt.split("\n\nQuestion: ", 1)[1]
    if "\n\nYou will use the following starter code" in question:
        statement, _, rest = question.rpartition("\n\nYou will use the following starter code")
        return statement, rest.split("```python\n", 1)[1].removesuffix("\n```\n\n")
    return question.rpartition("\n\nRead the inputs from stdin")[0], ""


def recorded_rows(data_folder: Path, *, with_statements: bool = True) -> list[dict[str, Any]]:
    """Rows for the recorded submissions, by contest day: the 278 that have statement and tests, or all 880 with what there is."""
    prompts = published_prompts(data_folder)
    rows = []
    for question_id, found in sorted(submissions(data_folder).items(), key=lambda item: (item[1]["contest_date"], item[0])):
        function = found["func_name"]
        public = [code_test(test["input"], test["output"], function) for test in found["public_tests"]]
        failing = found["recorded_failing_test"]
        private = [code_test(failing["input"], failing["output"], function)] if failing else public
        if with_statements and not (question_id in prompts and private):
            continue
        statement, starter = f"(The statement of {question_id} is not at hand.)", ""
        if question_id in prompts:
            statement, starter = statement_and_starter(prompts[question_id]["prompt"])
        elif function:
            starter = f"class Solution:\n    def {function}(self):\n        "
        rows.append(
            code_row(
                question_id,
                question_title=re.sub(r"(?<=[a-z])(?=[A-Z])", "-", function).lower() if function else question_id,
                question_content=statement,
                platform=found["platform"],
                contest_id=prompts.get(question_id, {}).get("contest_id", question_id.split("_")[0]),
                contest_date=found["contest_date"],
                starter_code=starter,
                difficulty=found["difficulty"],
                public=public,
                private=private,
                metadata=json.dumps({"func_name": function} if function else {}),
            )
        )
    return rows
