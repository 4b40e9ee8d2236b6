"""Hands the tests of a problem to graders: read again from the data's file, checked against their digest, decoded, kept a while.

Only as many decoded tests are kept as ``cache_bytes`` holds (and always those asked for last), because all tests of a release are some ten
gigabytes. Exercise it: ``pytest tests/evals/ms4_evals/tasks/livecodebench/test_source.py``.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable

from ms4_evals.graders.livecodebench.problem import CodeProblem
from ms4_evals.identity import content_hash
from ms4_evals.tasks.livecodebench.private_tests import MAX_ENCODED_BYTES, TestsUnreadable, decode_tests
from ms4_evals.tasks.livecodebench.rows import Row, Span
from ms4_train.errors import EvaluationError, MS4Error
from ms4_train.untrusted import parse_json
from ms4_train.untrusted.files import open_regular

DEFAULT_CACHE_BYTES = 256 << 20
_EMPTY_BYTES = 100
"""An empty list of tests has 28 to 44 bytes, compressed and in base64."""


def digest_of_tests(row: Row) -> str:
    """Identity of a problem's tests, from their stored form: equal digests mean equal tests, and nothing is decoded for it."""
    return content_hash(["livecodebench-tests", row.function, row.public_tests, row.private_tests.sha256])


class StoredTests:
    """Tests in the data's files. Satisfies ``TestSource``; thread-safe.

    Args:
        rows: the problems that may be asked for.
        cache_bytes: of decoded tests that are kept.
    """

    def __init__(self, rows: Iterable[Row], *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._rows = {row.question_id: row for row in rows}
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[str, CodeProblem] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._bookkeeping = threading.Lock()
        self._decoding = threading.Lock()
        self.decoded = 0

    def problem(self, problem_id: str) -> CodeProblem:
        """The problem with all its tests: the public ones, then the private ones.

        Args:
            problem_id: as in the data (``abc301_a``), or with the task's name before it (``livecodebench/abc301_a``).

        Raises:
            EvaluationError: there is no such problem, its file has changed, or its tests cannot be read.
        """
        question_id = problem_id.rpartition("/")[2]
        if question_id not in self._rows:
            raise EvaluationError(
                "there is no such problem in the data.", key=problem_id, fix="evaluate the data that the run was started with."
            )
        if (known := self._known(question_id)) is not None:
            return known
        with self._decoding:  # one at a time: two large problems at once would double the memory
            if (known := self._known(question_id)) is None:
                known = self._decode(self._rows[question_id])
                self._keep(question_id, known)
        return known

    def untested(self) -> list[str]:
        """Ids of problems without any test that can be read, which nothing can grade. Only rows too short to hold many are decoded."""
        found: list[str] = []
        for row in self._rows.values():
            if row.private_tests.length <= _EMPTY_BYTES and len(row.public_tests) <= _EMPTY_BYTES:
                try:
                    self.problem(row.question_id)
                except EvaluationError:
                    found.append(row.question_id)
        return found

    def _known(self, question_id: str) -> CodeProblem | None:
        with self._bookkeeping:
            if question_id in self._cached:
                self._cached.move_to_end(question_id)
            return self._cached.get(question_id)

    def _keep(self, question_id: str, problem: CodeProblem) -> None:
        with self._bookkeeping:
            self.decoded += 1
            self._cached[question_id] = problem
            self._sizes[question_id] = sum(len(test.input) + len(test.output) for test in problem.tests)
            while len(self._cached) > 1 and sum(self._sizes.values()) > self._cache_bytes:
                oldest, _ = self._cached.popitem(last=False)
                del self._sizes[oldest]

    def _decode(self, row: Row) -> CodeProblem:
        span = row.private_tests
        part = "public_test_cases"
        try:
            tests = decode_tests(row.public_tests)
            part = "private_test_cases"
            tests += decode_tests(_read_string(span))
        except TestsUnreadable as reason:
            raise EvaluationError(
                f"the tests of {row.question_id} cannot be read: {reason}",
                file=span.file,
                line=span.line,
                key=part,
                fix="fetch the file again, or drop the row.",
            ) from None
        return CodeProblem(row.question_id, row.function, tests)


def _read_string(span: Span) -> str:
    """The JSON string at a span."""
    if span.length > MAX_ENCODED_BYTES:
        raise TestsUnreadable(f"they are longer than {MAX_ENCODED_BYTES:,} bytes.")
    try:
        with open_regular(span.file) as handle:
            handle.seek(span.offset)
            raw = handle.read(span.length)
    except OSError as error:
        raise TestsUnreadable(f"the file cannot be read ({error.strerror}).") from None
    except MS4Error as error:
        raise TestsUnreadable(f"the file: {error.message}") from None
    if hashlib.sha256(raw).hexdigest() != span.sha256:
        raise EvaluationError(
            "the file has changed since the evaluation began.", file=span.file, line=span.line, fix="start the evaluation again."
        )
    if b"\\" not in raw and raw.isascii():
        return raw.decode("ascii")
    try:
        return parse_json(b'"' + raw + b'"', file=span.file, line=span.line)
    except MS4Error as error:
        raise TestsUnreadable(error.message) from None
