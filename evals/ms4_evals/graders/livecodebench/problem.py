"""What a LiveCodeBench grader needs of a problem: its tests, in the official order, and the function they call, if any.

The tests never reach the process that runs a candidate: its inputs do, one at a time, its expected outputs do not.
Exercise it: ``pytest tests/evals/ms4_evals/graders/livecodebench/test_problem.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ms4_train.errors import EvaluationError


@dataclass(frozen=True)
class CodeTest:
    """One test.

    Attributes:
        input: standard input; of a functional problem one JSON value per line, the arguments in order.
        output: what must be printed; of a functional problem the JSON of the value that must be returned.
    """

    input: str
    output: str


@dataclass(frozen=True)
class CodeProblem:
    """One problem.

    Attributes:
        problem_id: as in the data, ``abc301_a``.
        function: the name that the tests call (``metadata.func_name``); None where programs read standard input.
        tests: the public ones, then the private ones, in the data's order.

    Raises:
        EvaluationError: there are no tests. Nothing may pass by having nothing to fail.
    """

    problem_id: str
    function: str | None
    tests: tuple[CodeTest, ...]

    def __post_init__(self) -> None:
        if not self.tests:
            raise EvaluationError(
                "a problem without tests would pass whatever is submitted",
                key=self.problem_id,
                fix="load the release with its private tests, or leave the problem out.",
            )


class TestSource(Protocol):
    """Where graders find tests. Private tests are decoded when a problem is asked for, not before: they are large."""

    # Not a test class, whatever its name tells a test runner.
    __test__ = False

    def problem(self, problem_id: str) -> CodeProblem:
        """The problem with all its tests.

        Raises:
            EvaluationError: there is no such problem, or its tests cannot be read.
        """
        ...
