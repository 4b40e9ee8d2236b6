r"""The integer check: reads one integer out of a final answer, strictly.

Only the last balanced box counts, and only when it commits to a single integer. Nothing is fished out of prose, so an answer that names no
box is ``no-answer`` and a box that holds two values, or none, is ``wrong``. ``1.0`` in ``GRADER_ID`` changes whenever a verdict could.

Exercise it: ``pytest tests/evals/ms4_evals/graders/test_integer.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ms4_evals.graders.base import MATH_VERIFY, Grade
from ms4_evals.graders.boxed import last_boxed, unwrap_boxes

if TYPE_CHECKING:
    from ms4_evals.tasks.base import TaskProblem

GRADER_ID = "integer-box/1.0"

MAX_BOX_CHARACTERS = 400
_MAX_DIGITS = 40

# Applied in this order. Spaces that LaTeX prints become one space and are looked at later, because "35, 70" is a list and "1,234" is not.
_SPACES = r"\\[,;:>]|\\(?:quad|qquad|thinspace|medspace|displaystyle|textstyle|left|right|bf|rm)(?![A-Za-z])|\\ |~|[\u00a0\u2009\u202f]"
_MODULUS = r"\(\s*\\?mod\b[^()]*\)|\\(?:pmod|pod)\s*(?:\{[^{}]*\}|\d)|\\(?:bmod|mod)(?![A-Za-z])\s*(?:\{[^{}]*\}|\d+)"
_DEGREE = r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\(?:degree|textdegree)(?![A-Za-z])|\u00b0"
_REPLACEMENTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\!", ""),
        (_SPACES, " "),
        (r"\\?\$|\\\(|\\\)|\\\[|\\\]", ""),
        (r"\u2212|\u2013", "-"),
        (r"\{,\}\s*", ","),
        (_MODULUS, ""),
        (_DEGREE, ""),
        (r"\\equiv(?![A-Za-z])|\u2261", "="),
    )
)
_TEXT_COMMANDS = "text|textbf|textit|textrm|texttt|mathbf|mathrm|mathit|mathsf|mathtt|bm|boldsymbol|mbox|hbox|operatorname"
_TEXT = re.compile(rf"\\(?:{_TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_INTEGER = re.compile(r"([+-]?)\s*(\d+)(?:\.(0*))?")
_RATIO = re.compile(r"([+-]?\d+)/([+-]?\d+)")
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:([, ])\d{3})(?:\1\d{3})*(?![\d,])")


@dataclass(frozen=True)
class IntegerGrader:
    """Grades final answers against an integer. The thinking of a sample is never shown to it."""

    grader_id: str = GRADER_ID
    second_grader: str = MATH_VERIFY
    is_instant: bool = True

    def grade(self, problem: TaskProblem, answer: str, *, is_truncated: bool) -> Grade:
        """Grade the final answer of one sample.

        A sample that hit its token limit is graded when its final answer holds a balanced box, and is ``truncated`` otherwise.

        Args:
            problem: its gold answer is the right integer, in decimal.
            answer: the final answer, without the thinking.
            is_truncated: the sample ended because it hit its token limit.
        """
        inner = last_boxed(answer)
        if inner is None or not inner.strip():
            return Grade("truncated" if is_truncated else "no-answer", None)
        value = read_integer(inner)
        if value is None:
            return Grade("wrong", inner.strip()[:MAX_BOX_CHARACTERS])
        return Grade("correct" if value == int(problem.gold) else "wrong", str(value))


def read_integer(inner: str) -> int | None:
    r"""The single integer that the inside of a box commits to, or None.

    Read are leading zeros (``070``), a decimal part of zeros (``70.0``), thousands (``1,234``, ``1{,}234``, ``1\,234``), degrees, text and
    font commands (``\text{70}``, ``70\text{ cm}``), residues (``70 \pmod{1000}``), the right-hand side of an equation (``m+n=70``) and a
    quotient without remainder (``140/2``, ``\frac{140}{2}``). Several values (``x=35, y=70``) commit to none of them.
    """
    if len(inner) > MAX_BOX_CHARACTERS:
        return None
    text = unwrap_boxes(inner)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = _without_text_commands(text)
    text = _FRACTION.sub(lambda found: f"({found[1] or found[2]})/({found[3] or found[4]})", text)
    text = text.replace("{", "").replace("}", "").strip().removesuffix(".").strip()
    text = _GROUPED.sub(lambda found: found[0].replace(",", "").replace(" ", ""), text)
    if "," in text or ";" in text:
        return None
    return _integer_value(text.rpartition("=")[2])


def _without_text_commands(text: str) -> str:
    """Text commands that hold digits give their content, those that hold words (units) give two spaces, which no integer has."""
    while True:
        shorter = _TEXT.sub(lambda found: found[1] if re.search(r"\d", found[1]) else "  ", text)
        if shorter == text:
            return text
        text = shorter


def _integer_value(text: str) -> int | None:
    text = text.strip()
    while len(text) > 1 and text[0] == "(" and text[-1] == ")" and "(" not in text[1:-1] and ")" not in text[1:-1]:
        text = text[1:-1].strip()
    if len(text) > _MAX_DIGITS or not text.isascii():
        return None
    if whole := _INTEGER.fullmatch(text):
        return int(whole[1] + whole[2])
    if ratio := _RATIO.fullmatch(re.sub(r"[()\s]", "", text)):
        numerator, denominator = int(ratio[1]), int(ratio[2])
        if denominator != 0 and numerator % denominator == 0:
            return numerator // denominator
    return None
