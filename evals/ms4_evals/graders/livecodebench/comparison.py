"""When an output counts as the expected one. Runs outside the sandbox, so that a program never meets what it should have printed.

The rule for printed output is LiveCodeBench's (``lcb_runner/evaluation/testing_util.py``, commit 28fef95): both texts stripped, as many
lines, and each line, stripped, equal to the other or equal token by token as decimal numbers. So ``1.0`` is ``1`` and ``1e3`` is
``1000``; nothing is within a tolerance, and words are case-sensitive. Returned values are equal when Python says so, without tolerance
either.

Exercise it: ``pytest tests/evals/ms4_evals/graders/livecodebench/test_comparison.py``.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal


class UncomparableError(Exception):
    """A signalling NaN in a line: Python refuses to compare it with anything."""


@dataclass(frozen=True)
class Difference:
    """Where two outputs part.

    Attributes:
        kind: another number of lines, or a line that differs.
        line: 0-based; 0 where the number of lines differs.
        got: that line, or the number of lines.
        expected: likewise.
    """

    kind: Literal["lines", "line"]
    line: int
    got: str
    expected: str


def stripped_lines(text: str) -> list[str]:
    """The lines of the stripped text, each stripped. An empty text is one empty line."""
    return [line.strip() for line in text.strip().split("\n")]


def printed_difference(got: str, expected: str) -> Difference | None:
    """The first difference of two outputs, or None when they count as equal.

    Raises:
        UncomparableError: a token is a signalling NaN and only its line's numbers could decide.
    """
    got_lines, expected_lines = stripped_lines(got), stripped_lines(expected)
    if len(got_lines) != len(expected_lines):
        return Difference("lines", 0, str(len(got_lines)), str(len(expected_lines)))
    for number, (one, other) in enumerate(zip(got_lines, expected_lines, strict=True)):
        if one != other and not _same_numbers(one, other):
            return Difference("line", number, one, other)
    return None


def _same_numbers(one: str, other: str) -> bool:
    first, second = _numbers(one), _numbers(other)
    if first is None or second is None:
        return False
    try:
        return first == second
    except decimal.InvalidOperation as error:
        raise UncomparableError(str(error)) from error


def _numbers(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(token) for token in line.split()]
    except (decimal.InvalidOperation, ValueError):
        return None


def same_value(got: Any, expected: Any) -> bool:
    """Whether a decoded value equals the expected one: Python's ``==``, so ``5.0`` is ``5`` and ``True`` is ``1``. No tolerance.

    Raises:
        UncomparableError: a signalling NaN was returned.
    """
    try:
        return bool(got == expected)
    except decimal.InvalidOperation as error:
        raise UncomparableError(str(error)) from error
