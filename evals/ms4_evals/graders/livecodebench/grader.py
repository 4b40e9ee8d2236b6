"""The grader of LiveCodeBench: the strict verdict counts, the official one is the opinion beside it, and where they part is for a list.

Code is taken from an answer twice, as each grader takes it (``extraction``). An answer without code is ``no-answer``, or ``truncated``
where it was cut off; a truncated answer whose last block is closed is graded, one whose last block is cut is not.

Exercise it: ``pytest tests/evals/ms4_evals/graders/livecodebench/test_grader.py``.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from ms4_evals.graders.base import MAX_EXTRACTED_CHARACTERS, Grade, GradingFailure
from ms4_evals.graders.livecodebench.extraction import extract_code, extract_code_strict
from ms4_evals.graders.livecodebench.official import TIMEOUT_SECONDS, OfficialResult, grade_official
from ms4_evals.graders.livecodebench.problem import CodeProblem, TestSource
from ms4_evals.graders.livecodebench.strict import STRICT_LIMITS, StrictGrader, StrictResult
from ms4_evals.sandbox.base import Limits, Sandbox
from ms4_evals.tasks.base import TaskProblem
from ms4_train.errors import EvaluationError

STRICT_ID = "livecodebench-strict/1.0"
OFFICIAL_ID = "livecodebench-official/28fef95"
SHOWN_CHARACTERS = 1000
"""Of an input, an output or a message, in the details of a grade."""


class LiveCodeBenchGrader:
    """Grades answers in a sandbox. Thread-safe; a context manager, or call ``close``.

    Args:
        source: where the tests of a problem come from.
        sandbox: where candidates run; it is the caller's to close.
        workers: tests in flight, over all answers that are being graded; None takes one per processor.
        limits: of each test of the strict grader.
        official_timeout: seconds per test of the official grader.
    """

    def __init__(
        self,
        source: TestSource,
        sandbox: Sandbox,
        *,
        workers: int | None = None,
        limits: Limits = STRICT_LIMITS,
        official_timeout: int = TIMEOUT_SECONDS,
    ) -> None:
        self._source = source
        self._sandbox = sandbox
        self._workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="tests")
        self._strict = StrictGrader(sandbox, executor=self._pool, workers=self._workers, limits=limits)
        self._official_timeout = official_timeout
        plain = f"{STRICT_ID} python-{sys.version_info.major}.{sys.version_info.minor}" + "".join(
            f" {name}" for name in sorted(sandbox.packages)
        )
        if limits != STRICT_LIMITS:
            plain += f" wall={limits.wall_seconds:g} cpu={limits.cpu_seconds:g} memory={limits.memory_bytes}"
        self.grader_id = plain if sandbox.is_safe else f"{plain} no-sandbox"
        self.second_grader = OFFICIAL_ID
        self.is_instant = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the threads, once the tests handed to them are done; where the sandbox was closed before, that is at once."""
        # Not cancel_futures: whoever is in concurrent.futures.wait for a test would never hear that it was cancelled.
        self._pool.shutdown(wait=True)

    def grade(self, problem: TaskProblem, answer: str, *, is_truncated: bool) -> Grade:
        """The strict verdict on an answer, with the official one as opinion.

        ``problem.problem_id`` is what the source of tests is asked for.

        Raises:
            GradingFailure: the sandbox failed, or the tests cannot be had.
        """
        try:
            tests = self._source.problem(problem.problem_id)
        except EvaluationError as error:
            raise GradingFailure(str(error)) from error
        if not tests.tests:
            raise GradingFailure(f"{tests.problem_id} has no tests; nothing may pass by having nothing to fail")
        strict_code, official_code = extract_code_strict(answer), extract_code(answer)
        official = self._pool.submit(self._official, tests, official_code)
        try:
            is_cut = is_truncated and not strict_code.is_closed
            if is_cut or not strict_code.code.strip():
                strict = None
            else:
                strict = self._strict.grade(tests, strict_code.code)
            opinion = official.result()
        finally:
            official.cancel()
        return Grade(
            verdict=("truncated" if is_truncated else "no-answer") if strict is None else "correct" if strict.passed else "wrong",
            extracted=strict_code.code[:MAX_EXTRACTED_CHARACTERS] or None,
            details={
                **({} if strict is None else _strict_details(tests, strict)),
                "official": _official_details(opinion, is_same_code=official_code == strict_code.code),
            },
            opinion="correct" if opinion.passed else "wrong",
        )

    def _official(self, problem: CodeProblem, code: str) -> OfficialResult:
        if not code.strip():
            # The original compiles this to a function without a body, or misses the function: it fails, whatever the tests.
            return OfficialResult((-4,), -4, "Error during testing: no code", "no code")
        return grade_official(self._sandbox, code, problem.function, problem.tests, timeout=self._official_timeout)


def _strict_details(problem: CodeProblem, result: StrictResult) -> dict[str, Any]:
    details: dict[str, Any] = {
        "class": "pass",
        "tests": result.tests,
        "kind": "stdin" if problem.function is None else "functional",
        "seconds": round(max(run.cpu_seconds for run in result.runs), 3),
    }
    if (run := result.failing) is not None:
        details |= {
            "class": run.verdict,
            "test": run.index,
            "input": clipped(problem.tests[run.index].input),
            "expected": clipped(problem.tests[run.index].output),
            "got": clipped(run.got),
            "seconds": round(run.cpu_seconds, 3),
            "wall_seconds": round(run.wall_seconds, 3),
        }
        if run.stderr:
            details["stderr"] = run.stderr[-SHOWN_CHARACTERS:]
    return details


def _official_details(result: OfficialResult, *, is_same_code: bool) -> dict[str, Any]:
    details: dict[str, Any] = {"code": result.code, "message": clipped(result.message), "tests_run": len(result.results)}
    if result.error and result.error not in result.message:
        details["error"] = clipped(result.error)
    if not is_same_code:
        details["other_code"] = True
    return details


def clipped(text: str) -> str:
    """At most ``SHOWN_CHARACTERS`` of a text, and how many are missing."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    note = f"... ({len(text)} characters)"
    return text[: SHOWN_CHARACTERS - len(note)] + note
