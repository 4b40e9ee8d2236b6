"""The official grader: the verdicts of LiveCodeBench's own, commit 28fef95, with its faults, for comparison with published numbers.

Reproduced (``lcb_runner/evaluation/testing_util.py`` and ``compute_code_generation_metrics.py``): all tests of a problem in one process,
one ``Solution`` object for all; the program moved into a function, its imports in front and its last ``if __name__ == '__main__'``
opened; a stand-in for standard input that cannot be iterated over, whose ``read`` always begins anew and whose ``buffer.readline`` always
gives the first line; captured output without ``buffer``; disabled functions of ``os``; an alarm of 6 s for each test, which the program
may switch off or swallow, and (6 + 1) * tests + 5 s for all; only the outermost tuple counted as a list; no memory limit worth the name;
a problem without tests passed by whatever compiles. Codes: -2 wrong answer, -3 alarm, -4 exception or not compiled, -5 no result from the
process. Its -1, for the time over all tests, never comes out: the original fails on its own empty list there and reports -5 with the
result ``[-2]``, and so does this.

Deliberately not reproduced, because candidate and expected outputs are not in one process here: reading the expected output from the frames
above, replacing the comparison, and returning an object whose ``__eq__`` says yes. Nor do files, network or other processes of the machine
exist. Two limits the original lacks: 4 GiB of memory, as its source says and does not do, and 64 MiB of output; past either the process
ends without a result (-5). The comparison of a returned numpy array fails (-4) as in the original unless it holds one number.

Exercise it: ``pytest tests/evals/ms4_evals/graders/livecodebench/test_official.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms4_evals.graders.base import GradingFailure
from ms4_evals.graders.livecodebench.comparison import UncomparableError, printed_difference, same_value
from ms4_evals.graders.livecodebench.official_worker import WORKER
from ms4_evals.graders.livecodebench.problem import CodeTest
from ms4_evals.graders.livecodebench.values import MAX_DEPTH, Array, HugeInteger, decode_value
from ms4_evals.sandbox.base import Limits, Sandbox, Session
from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import parse_json

TIMEOUT_SECONDS = 6
MEMORY_BYTES = 4 << 30
OUTPUT_BYTES = 64 << 20
_PROGRAM = "worker.py"
_ARGUMENTS = ("-I", _PROGRAM)
_SHOWN = 300


@dataclass(frozen=True)
class OfficialResult:
    """What the official grader says.

    Attributes:
        results: per test that was run: True, False (a wrong value), or a code; ``(-2,)`` beside the code -5.
        code: -2 to -5; None when all tests passed.
        message: the original's ``error_message``; empty when all tests passed.
        error: the exception, where there was one.
    """

    results: tuple[bool | int, ...]
    code: int | None = None
    message: str = ""
    error: str = ""

    @property
    def passed(self) -> bool:
        """As the original decides: every result is above zero, which is so where there is none."""
        return all(result > 0 for result in self.results)


class _NoResult(Exception):
    """The process ended, or its time did, without an answer."""


class _ArrayError(Exception):
    """A comparison whose outcome is an array has no truth value."""


class _UnprintableError(Exception):
    """The original prints a wrong value into its message, inside the block that makes an exception a runtime error."""


def grade_official(
    sandbox: Sandbox, code: str, function: str | None, tests: Sequence[CodeTest], *, timeout: int = TIMEOUT_SECONDS
) -> OfficialResult:
    """The official verdict on a candidate.

    Args:
        sandbox: where it runs.
        code: the candidate.
        function: what the tests call; None for programs that read standard input.
        tests: in the official order.
        timeout: whole seconds for each test.

    Raises:
        GradingFailure: the sandbox failed.
    """
    seconds = (timeout + 1) * len(tests) + 5
    limits = Limits(
        wall_seconds=seconds + 1,
        cpu_seconds=4 * seconds,
        memory_bytes=MEMORY_BYTES,
        processes=64,
        file_bytes=256 << 20,
        output_bytes=OUTPUT_BYTES,
        open_files=256,
    )
    session = sandbox.start({_PROGRAM: WORKER.encode()}, _ARGUMENTS, limits=limits)
    result = None
    try:
        talk = _Talk(session, time.monotonic() + seconds)
        ready = talk.ask({"code": code, "function": function, "timeout": timeout})
        result = _over_tests(talk, function, tests) if "ready" in ready else _not_tested(ready)
    except _NoResult:
        result = OfficialResult((-2,), -5, "TestRunnerError")
    finally:
        outcome = session.close()
    if outcome.status == "sandbox-error":
        raise GradingFailure(f"the sandbox failed: {outcome.stderr[-500:].decode('utf-8', 'replace')}")
    return result


class _Talk:
    """Questions and answers, one line each, until the time is up."""

    def __init__(self, session: Session, deadline: float) -> None:
        self._session = session
        self._deadline = deadline

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Raises _NoResult when no answer comes, or one that is none of the worker's."""
        self._session.send(json.dumps(question).encode("ascii") + b"\n")
        line = self._session.read_line(max(0.0, self._deadline - time.monotonic()))
        if line is None:
            raise _NoResult
        try:
            answer = parse_json(line, max_depth=MAX_DEPTH)
        except UntrustedInputError as error:
            raise _NoResult from error
        if not isinstance(answer, dict):
            raise _NoResult
        return answer


def _not_tested(reply: Mapping[str, Any]) -> OfficialResult:
    """The whole run is one failure, whatever test it came from."""
    error = str(reply.get("error", ""))
    return OfficialResult((-4,), -4, f"Error during testing: {error}", error)


def _over_tests(talk: _Talk, function: str | None, tests: Sequence[CodeTest]) -> OfficialResult:
    try:
        # The original reads all of them before the first test.
        expected = [test.output if function is None else parse_json(test.output) for test in tests]
        _ = [parse_json(line) for test in tests if function is not None for line in test.input.split("\n")]
    except UntrustedInputError as error:
        return _not_tested({"error": str(error)})
    results: list[bool | int] = []
    for test, output in zip(tests, expected, strict=True):
        reply = talk.ask({"input": test.input})
        if reply.get("outside"):
            return _not_tested(reply)
        if "error" in reply:
            code = -3 if reply.get("code") == -3 else -4
            message = "Time Limit Exceeded" if code == -3 else "Runtime Error"
            return OfficialResult((*results, code), code, message, str(reply["error"]))
        try:
            wrong = _wrong_output(reply, output) if function is None else _wrong_value(reply, output)
        except UncomparableError as error:
            return _not_tested({"error": str(error)})
        except _ArrayError as error:
            return OfficialResult((*results, -4), -4, "Runtime Error", repr(error))
        except _UnprintableError as error:
            return OfficialResult((*results, False, -4), -4, "Runtime Error", repr(error))
        if wrong is not None:
            return OfficialResult((*results, -2 if function is None else False), -2, wrong)
        results.append(True)
    return OfficialResult(tuple(results))


def _wrong_output(reply: Mapping[str, Any], expected: str) -> str | None:
    """The original's message on a wrong output, or None."""
    output = reply.get("output")
    if not isinstance(output, str):
        raise _NoResult
    difference = printed_difference(output, expected)
    if difference is None:
        return None
    if difference.kind == "lines":
        return "Wrong answer: mismatched output length"
    return f"Wrong answer at output_line_idx={difference.line}: {_shown(difference.got)} != {_shown(difference.expected)}"


def _wrong_value(reply: Mapping[str, Any], expected: Any) -> str | None:
    try:
        value = decode_value(reply["value"], plain=False)
    except (KeyError, UntrustedInputError) as error:
        raise _NoResult from error
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, Array):
        if value.size != 1 or len(value) != 1:
            raise _ArrayError("the truth value of an array of several numbers is ambiguous")
        # Either side is stretched to the other's shape: one number equals the same number in any brackets.
        value, expected = value[0], expected[0] if isinstance(expected, list) and len(expected) == 1 else expected
    if same_value(value, expected):
        return None
    if _has_huge_integer(value):
        raise _UnprintableError("exceeds the limit (50000 digits) for integer string conversion")
    return "Wrong Answer"


def _has_huge_integer(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_huge_integer(item) for pair in value.items() for item in pair)
    return any(map(_has_huge_integer, value)) if isinstance(value, list | tuple) else isinstance(value, HugeInteger)


def _shown(text: str) -> str:
    """As the original shortens: the middle left out."""
    return text if len(text) <= _SHOWN else text[: _SHOWN // 2] + "...(truncated) ..." + text[-_SHOWN // 2 :]
