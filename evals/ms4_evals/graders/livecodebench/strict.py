"""The strict grader: every test is a fresh process in the sandbox with a real standard input and output.

What counts as equal is in ``comparison``; how a program ended is the sandbox's word, never the program's. Decisions that a reader may
want to know, each with its test:

- Limits per test: 6 s of CPU, LiveCodeBench's time; 12 s of wall, because a busy machine must not turn right into too slow. A program
  that was stopped by the wall although it computed for at least a twentieth of it is run once more with five times the wall. Memory: the
  4 GB that LiveCodeBench's source speaks of and does not enforce; AtCoder allows 1 GiB, but for leaner languages than Python.
- Exit codes count: a right output followed by ``sys.exit(1)`` is a runtime error, as on the judges the problems are from.
  ``sys.exit(0)`` and ``os._exit(0)`` end a program early, and it is judged by what it had printed.
- A functional problem's value is compared with ``==``; tuples count as lists at every depth (JSON has no tuples, and judges serialise
  what is returned), where LiveCodeBench forgives the outermost only. Floats have no tolerance, as in LiveCodeBench. What the candidate
  prints is ignored. A fresh object and fresh arguments for every test, where LiveCodeBench reuses one object.
- Inputs end with a line feed, as files do. Expected outputs never enter the sandbox.

Exercise it: ``pytest tests/evals/ms4_evals/graders/livecodebench/test_strict.py``.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Literal, get_args

from ms4_evals.graders.base import GradingFailure
from ms4_evals.graders.livecodebench.comparison import UncomparableError, printed_difference, same_value
from ms4_evals.graders.livecodebench.problem import CodeProblem, CodeTest
from ms4_evals.graders.livecodebench.programs import (
    ARGUMENTS,
    CANDIDATE,
    COMPILE_FAILED,
    COMPILE_PROGRAM,
    FUNCTION_PROGRAM,
    MAIN,
    STDIN_PROGRAM,
)
from ms4_evals.graders.livecodebench.values import decode
from ms4_evals.sandbox.base import Limits, Outcome, Sandbox
from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import parse_json

TestClass = Literal["pass", "WA", "TLE", "MLE", "RE", "CE", "OLE"]
"""Right; wrong answer; time, memory limit passed; runtime error; not Python; output limit passed."""
TEST_CLASSES: tuple[TestClass, ...] = get_args(TestClass)

STRICT_LIMITS = Limits(
    wall_seconds=12.0, cpu_seconds=6.0, memory_bytes=4 << 30, processes=32, file_bytes=64 << 20, output_bytes=8 << 20, open_files=64
)
PASSED_OUTPUT = 1000
"""Characters that are kept of the output of a test that was passed."""
BUSY_WALL = 5.0
"""Times the wall limit, for the second run of a program that the wall stopped while it computed."""
_COMPUTING = 0.05
_SANDBOX_TRIES = 2


@dataclass(frozen=True)
class TestRun:
    """What one test came to.

    Attributes:
        index: 0-based, in the problem's order.
        verdict: its class.
        got: what was printed, of a functional problem the encoded value; of a test that was passed the beginning.
        stderr: the end of standard error; of a ``CE`` the message.
        cpu_seconds: of the process and all it started.
        wall_seconds: likewise.
    """

    __test__ = False

    index: int
    verdict: TestClass
    got: str
    stderr: str
    cpu_seconds: float
    wall_seconds: float


@dataclass(frozen=True)
class StrictResult:
    """What a candidate came to.

    Attributes:
        runs: in the problem's order: up to the first failing test, or all of them.
        tests: how many the problem has.
    """

    runs: tuple[TestRun, ...]
    tests: int

    @property
    def failing(self) -> TestRun | None:
        """The first test that was not passed."""
        return next((run for run in self.runs if run.verdict != "pass"), None)

    @property
    def passed(self) -> bool:
        """Every test was run and passed, and there was one."""
        return self.failing is None and len(self.runs) == self.tests > 0


class StrictGrader:
    """Runs candidates against tests. Thread-safe.

    Args:
        sandbox: where they run.
        executor: runs the tests of a candidate side by side; None runs them one after the other in the calling thread.
        workers: tests of one candidate in flight.
        limits: for each test; the output limit grows with the expected output.
    """

    def __init__(self, sandbox: Sandbox, *, executor: Executor | None = None, workers: int = 1, limits: Limits = STRICT_LIMITS) -> None:
        self._sandbox = sandbox
        self._executor = executor
        self._workers = workers
        self._limits = limits

    def grade(self, problem: CodeProblem, code: str, *, run_all: bool = False) -> StrictResult:
        """Run the tests, stopping at the first that fails unless told to run all.

        The result does not depend on how many ran side by side: the failing test is the first in the problem's order.

        Raises:
            GradingFailure: the sandbox failed, or a test of the problem cannot be read.
        """
        runs = self._all_runs(problem, code, run_all) if self._executor is None else self._parallel_runs(problem, code, run_all)
        return StrictResult(tuple(self._with_compile_errors(runs, code)), len(problem.tests))

    def run_test(self, problem: CodeProblem, index: int, code: str) -> TestRun:
        """Run one test. A program that is no Python comes out as ``RE`` here; ``grade`` looks closer.

        Raises:
            GradingFailure: as ``grade``.
        """
        test = problem.tests[index]
        program = STDIN_PROGRAM if problem.function is None else FUNCTION_PROGRAM
        files = {CANDIDATE: code.encode("utf-8", "replace"), MAIN: program.encode()}
        stdin = _input_of(problem, index)
        limits = dataclasses.replace(self._limits, output_bytes=self._limits.output_bytes + 2 * len(test.output))
        outcome = self._run(files, limits, stdin)
        if outcome.status == "wall-time" and outcome.cpu_seconds >= _COMPUTING * limits.wall_seconds:
            outcome = self._run(files, dataclasses.replace(limits, wall_seconds=BUSY_WALL * limits.wall_seconds), stdin)
        got = outcome.stdout.decode("utf-8", "replace")
        verdict = _class_of(outcome) or _judged(problem, test, index, outcome, got)
        stderr = outcome.stderr.decode("utf-8", "replace")
        if verdict == "pass":
            # Megabytes of white space may follow a right answer, test after test, and all runs of a problem are held.
            got = got[:PASSED_OUTPUT]
        return TestRun(index, verdict, got, stderr, outcome.cpu_seconds, outcome.wall_seconds)

    def _run(self, files: dict[str, bytes], limits: Limits, stdin: bytes = b"") -> Outcome:
        outcome = None
        for _ in range(_SANDBOX_TRIES):
            outcome = self._sandbox.run(files, ARGUMENTS, stdin=stdin, limits=limits)
            if outcome.status != "sandbox-error":
                return outcome
        assert outcome is not None
        raise GradingFailure(f"the sandbox failed: {outcome.stderr[-500:].decode('utf-8', 'replace')}")

    def _all_runs(self, problem: CodeProblem, code: str, run_all: bool) -> list[TestRun]:
        runs = []
        for index in range(len(problem.tests)):
            runs.append(self.run_test(problem, index, code))
            if runs[-1].verdict != "pass" and not run_all:
                break
        return runs

    def _parallel_runs(self, problem: CodeProblem, code: str, run_all: bool) -> list[TestRun]:
        assert self._executor is not None
        end = len(problem.tests)
        runs: dict[int, TestRun] = {}
        flying: dict[Future[TestRun], int] = {}
        submitted = 0
        try:
            while len(runs) < end:
                while submitted < end and len(flying) < self._workers:
                    flying[self._executor.submit(self.run_test, problem, submitted, code)] = submitted
                    submitted += 1
                done, _ = concurrent.futures.wait(flying, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in sorted(done, key=flying.__getitem__):
                    index = flying.pop(future)
                    if index >= end:
                        continue
                    runs[index] = future.result()
                    if runs[index].verdict != "pass" and not run_all:
                        end = index + 1
                        runs = {kept: run for kept, run in runs.items() if kept < end}
        finally:
            for future in flying:
                future.cancel()
        return [runs[index] for index in range(end)]

    def _with_compile_errors(self, runs: Sequence[TestRun], code: str) -> list[TestRun]:
        """Turns ``RE`` into ``CE`` where the candidate does not compile, which a run that executes nothing of it decides."""
        if not any(run.verdict == "RE" for run in runs):
            return list(runs)
        outcome = self._run({CANDIDATE: code.encode("utf-8", "replace"), MAIN: COMPILE_PROGRAM.encode()}, self._limits)
        if outcome.exit_code != COMPILE_FAILED:
            return list(runs)
        message = outcome.stdout.decode("utf-8", "replace")
        return [dataclasses.replace(run, verdict="CE", stderr=message) if run.verdict == "RE" else run for run in runs]


def _input_of(problem: CodeProblem, index: int) -> bytes:
    """Standard input of a test; of a functional problem the function's name goes before the arguments, as JSON on a line of its own."""
    text = problem.tests[index].input
    if text and not text.endswith("\n"):
        text += "\n"
    return (text if problem.function is None else json.dumps(problem.function) + "\n" + text).encode("utf-8", "replace")


def _class_of(outcome: Outcome) -> TestClass | None:
    """The class that the end of the process decides; None where it ended well and its output decides."""
    match outcome.status:
        case "wall-time" | "cpu-time":
            return "TLE"
        case "memory":
            return "MLE"
        case "output":
            return "OLE"
        case "exited" if outcome.exit_code == 0:
            return None
        case _:
            return "RE"


def _judged(problem: CodeProblem, test: CodeTest, index: int, outcome: Outcome, got: str) -> TestClass:
    try:
        if problem.function is None:
            return "pass" if printed_difference(got, test.output) is None else "WA"
        try:
            expected = parse_json(test.output)
        except UntrustedInputError as error:
            raise GradingFailure(f"{problem.problem_id}: the expected output of test {index} is no JSON: {error}") from error
        return "pass" if same_value(decode(outcome.stdout, plain=True), expected) else "WA"
    except (UncomparableError, UntrustedInputError):
        return "WA"
