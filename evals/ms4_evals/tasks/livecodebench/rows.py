"""Reads the rows of LiveCodeBench's files, without their private tests.

A row is one line, and most of a line (up to more than 100 MB) is its private tests. They are passed over in pieces: what is kept of them
is where they stand and their SHA-256, so memory does not grow with the files. ``source`` reads them again when a grader asks.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/livecodebench/test_rows.py``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, BinaryIO

from ms4_train.errors import EvaluationError, MS4Error
from ms4_train.untrusted import parse_json
from ms4_train.untrusted.files import open_regular

MAX_ROW_BYTES = 16 << 20
"""Of a row without its private tests: statement, starter code, public tests. Real ones have some ten kilobytes."""

_PIECE_BYTES = 1 << 20
_FIELD = "private_test_cases"
# In JSON text this can only be a whole string and the value after it: within a string, its quotes would be escaped.
_START = re.compile(rf'"{_FIELD}"[ \t]{{0,16}}:[ \t]{{0,16}}"'.encode())
_START_LENGTH = len(_FIELD) + 2 + 1 + 1 + 2 * 16
_STRING_PART = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

PLATFORMS = frozenset({"leetcode", "atcoder", "codeforces"})
DIFFICULTIES = frozenset({"easy", "medium", "hard"})


@dataclass(frozen=True)
class Span:
    """Where the private tests of a row stand: the bytes between the quotes of their JSON string.

    Attributes:
        file: that holds them.
        line: of the row, from 1.
        offset: of the first byte in the file.
        length: in bytes.
        sha256: of those bytes.
    """

    file: Path
    line: int
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Row:
    """One problem, as the data has it.

    Attributes:
        question_id: unique in the data: ``abc301_a``, ``2727``, ``1873_A``.
        title: ``question_title``.
        statement: ``question_content``.
        starter_code: empty where programs read standard input.
        platform: one of ``PLATFORMS``.
        difficulty: one of ``DIFFICULTIES``.
        day: of the contest.
        function: the name that tests call; None where programs read standard input.
        public_tests: ``public_test_cases``, still encoded.
        private_tests: where the others are.
    """

    question_id: str
    title: str
    statement: str
    starter_code: str
    platform: str
    difficulty: str
    day: date
    function: str | None
    public_tests: str
    private_tests: Span


def iter_rows(path: Path, *, sha256: str | None = None) -> Iterator[Row]:
    """Every row of a file, in order.

    Args:
        path: a file in the hub's form.
        sha256: what the file must hash to, where that is known; checked once its last row has been read.

    Raises:
        EvaluationError: a malformed row, or another file than ``sha256`` names.
    """
    digest = hashlib.sha256()
    with open_regular(path) as handle:
        reader = _LineReader(handle, path, digest if sha256 else None)
        while (found := reader.next_line()) is not None:
            text, span = found
            if text.strip():
                yield _read_row(text, span, path, reader.line)
    if sha256 is not None and digest.hexdigest() != sha256:
        raise EvaluationError(
            f"the file is not the published one (SHA-256 {digest.hexdigest()[:12]}..., not {sha256[:12]}...).",
            file=path,
            fix="delete it and start again: it will be fetched anew. A file of your own is named with `path`.",
        )


class _LineReader:
    """Lines of a file with the private tests cut out of them."""

    def __init__(self, handle: BinaryIO, path: Path, digest: Any) -> None:
        self._handle, self._path, self._digest = handle, path, digest
        self._position = 0
        self.line = 0

    def next_line(self) -> tuple[bytes, Span | None] | None:
        """The next line with an empty string for private tests, and where those stand; None at the end of the file."""
        kept = self._piece()
        if not kept:
            return None
        self.line += 1
        searched = 0
        while (start := _START.search(kept, searched)) is None and not kept.endswith(b"\n"):
            searched = max(0, len(kept) - _START_LENGTH)
            piece = self._piece()
            if not piece:
                return kept, None
            kept = self._bounded(kept + piece)
        if start is None:
            return kept, None
        offset = self._position - (len(kept) - start.end())
        span, rest = self._pass_over(kept[start.end() :], offset)
        kept = kept[: start.end()] + rest
        while not kept.endswith(b"\n") and (piece := self._piece()):
            kept = self._bounded(kept + piece)
        return kept, span

    def _pass_over(self, piece: bytes, offset: int) -> tuple[Span, bytes]:
        """Read on to the end of the string; its span, and what stands after it (from the closing quote) in the piece read last."""
        digest, length, is_escaped = hashlib.sha256(), 0, False
        while True:
            end, is_escaped = _string_end(piece, is_escaped)
            digest.update(memoryview(piece)[:end])
            length += end
            if end < len(piece):
                return Span(self._path, self.line, offset, length, digest.hexdigest()), piece[end:]
            is_cut = piece.endswith(b"\n")
            piece = b"" if is_cut else self._piece()
            if not piece:
                what = "a line ends" if is_cut else "the file ends"
                raise EvaluationError(f"{what} inside {_FIELD}.", file=self._path, line=self.line, fix="fetch the file again.")

    def _piece(self) -> bytes:
        """At most a megabyte of the current line."""
        try:
            piece = self._handle.readline(_PIECE_BYTES)
        except OSError as error:
            raise EvaluationError(f"cannot be read on ({error.strerror}).", file=self._path, fix="check the disk.") from None
        self._position += len(piece)
        if self._digest is not None:
            self._digest.update(piece)
        return piece

    def _bounded(self, kept: bytes) -> bytes:
        if len(kept) > MAX_ROW_BYTES:
            raise EvaluationError(
                f"a row of more than {MAX_ROW_BYTES:,} bytes beside its {_FIELD}.", file=self._path, line=self.line, fix="drop the row."
            )
        return kept


def _string_end(piece: bytes, is_escaped: bool) -> tuple[int, bool]:
    """Where the string that a piece begins in ends, or the piece's length; and whether its last byte escapes the first of the next."""
    start = 1 if is_escaped and piece else 0
    quote = piece.find(b'"', start)
    if quote >= 0 and piece.find(b"\\", start, quote) < 0:
        return quote, False
    if quote < 0 and piece.find(b"\\", start) < 0:
        return len(piece), False
    found = _STRING_PART.match(piece, start)
    end = found.end() if found else start
    if end < len(piece) and piece[end : end + 1] == b"\\":
        return len(piece), True
    return end, False


def _read_row(text: bytes, span: Span | None, path: Path, line: int) -> Row:
    try:
        return _row_of(parse_json(text.strip(), file=path, line=line), span)
    except _BadRow as error:
        key, message = error.args
        fix = "correct the row; its keys are those of livecodebench/code_generation_lite on the hub."
        raise EvaluationError(message, file=path, line=line, key=key, fix=fix) from None


class _BadRow(Exception):
    pass


def _row_of(row: Any, span: Span | None) -> Row:
    if not isinstance(row, dict):
        raise _BadRow(None, "a row is a JSON object.")
    if span is None or row.get(_FIELD) != "":
        raise _BadRow(_FIELD, "the row holds no private tests as a string.")
    question_id = _string(row, "question_id")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", question_id):
        raise _BadRow("question_id", "is not an id of letters, digits, dashes and underscores.")
    statement = _string(row, "question_content")
    if not statement.strip():
        raise _BadRow("question_content", "the problem has no text.")
    return Row(
        question_id=question_id,
        title=_string(row, "question_title"),
        statement=statement,
        starter_code=_string(row, "starter_code"),
        platform=_one_of(row, "platform", PLATFORMS),
        difficulty=_one_of(row, "difficulty", DIFFICULTIES),
        day=_day(_string(row, "contest_date")),
        function=_function(_string(row, "metadata")),
        public_tests=_string(row, "public_test_cases"),
        private_tests=span,
    )


def _string(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise _BadRow(key, "a string is needed.")
    return value


def _one_of(row: dict[str, Any], key: str, values: frozenset[str]) -> str:
    value = _string(row, key)
    if value not in values:
        raise _BadRow(key, f"{value[:40]!a} is none of {', '.join(sorted(values))}.")
    return value


def _day(text: str) -> date:
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        raise _BadRow("contest_date", f"{text[:40]!a} is no date.") from None


def _function(text: str) -> str | None:
    try:
        metadata = parse_json(text)
    except MS4Error as error:
        raise _BadRow("metadata", error.message) from None
    name = metadata.get("func_name") if isinstance(metadata, dict) else ""
    if name is None:
        return None
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 200:
        raise _BadRow("metadata", "func_name is not the name of a function.")
    return name
