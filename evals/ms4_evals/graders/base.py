"""What a grader is: something that turns the final answer of a sample into a verdict, never seeing the thinking.

Exercise it: ``pytest tests/evals/ms4_evals/graders/test_base.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from ms4_evals.tasks.base import TaskProblem

Verdict = Literal["correct", "wrong", "no-answer", "truncated", "error"]
VERDICTS: tuple[Verdict, ...] = ("correct", "wrong", "no-answer", "truncated", "error")

Opinion = Literal["correct", "wrong", "failed"]

MAX_EXTRACTED_CHARACTERS = 20_000
MATH_VERIFY = "math-verify"
"""The second grader of integer answers; the runner asks it once all samples are drawn."""


@dataclass(frozen=True)
class Grade:
    """The verdict on one sample.

    Attributes:
        verdict: one of ``VERDICTS``; a grader never gives ``error``.
        extracted: what was read out of the answer (an integer, a program, the answer itself); None when there was nothing to read.
        details: JSON values for people: which test failed, what the judge said. At most some 16 kB.
        opinion: a second grader's, where it is given together with the verdict; it never changes the verdict.
    """

    verdict: Verdict
    extracted: str | None
    details: Mapping[str, Any] | None = None
    opinion: Opinion | None = None


class GradingFailure(Exception):
    """The grader failed, not the answer (judge unreachable, sandbox broken): the sample keeps no verdict and is graded on resuming."""


class Grader(Protocol):
    """Gives verdicts. Safe to call from several threads."""

    @property
    def grader_id(self) -> str:
        """Name and version, and whatever else a verdict depends on (judge model, hash of its prompt); changes whenever a verdict could."""
        ...

    @property
    def second_grader(self) -> str:
        """Who gives second opinions: ``MATH_VERIFY``, the name of a grader whose opinion comes with the verdict, or empty for nobody."""
        ...

    @property
    def is_instant(self) -> bool:
        """False for graders that run programs or ask servers: they grade in threads beside the drawing."""
        ...

    def grade(self, problem: TaskProblem, answer: str, *, is_truncated: bool) -> Grade:
        """The verdict on the final answer (without thinking) of one sample.

        Raises:
            GradingFailure: there is no verdict, through no fault of the answer.
        """
        ...
