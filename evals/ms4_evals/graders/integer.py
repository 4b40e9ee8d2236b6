r"""The integer check: reads one integer out of a final answer, strictly.

Only the last balanced box counts, and only when it commits to a single integer. Nothing is fished out of prose, so an answer that names no
box is ``no-answer`` and a box that holds two values, or none, is ``wrong``. The number in ``GRADER_ID`` changes whenever a verdict could.

Exercise it: ``pytest tests/evals/ms4_evals/graders/test_integer.py tests/evals/ms4_evals/graders/test_integer_answers.py``.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ms4_evals.graders.base import MATH_VERIFY, Grade
from ms4_evals.graders.boxed import last_boxed, unwrap_boxes

if TYPE_CHECKING:
    from ms4_evals.tasks.base import TaskProblem

GRADER_ID = "integer-box/1.1"

MAX_BOX_CHARACTERS = 400
_MAX_DIGITS = 40

# Applied in this order. Spaces that LaTeX prints become one space and are looked at later, because "35, 70" is a list and "1,234" is not.
_SPACES = (
    r"\\[,;:>]|\\(?:quad|qquad|thinspace|medspace|left|right|displaystyle|textstyle|bf|rm|it|sf|tt|bfseries|small|normalsize|large|Large"
    r"|LARGE|huge|Huge|big|Big|bigl|bigr)(?![A-Za-z])|\\ |~|[\u00a0\u2009\u202f]"
)
_COLOUR = r"\\(?:text)?color\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}"
_MOD_IN_TEXT = r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{\s*mod(?:ulo)?\s*\}"
_MODULUS = (
    r"\(\s*\\?mod(?:ulo)?\b[^()]*\)|\\(?:pmod|pod)\s*(?:\{[^{}]*\}|\d)|\\(?:bmod|mod)(?![A-Za-z])\s*(?:\{[^{}]*\}|\d+)"
    r"|(?<![A-Za-z\\])mod(?:ulo)?\s*\d+"
)
_DEGREE = r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\(?:degree|textdegree)(?![A-Za-z])|\u00b0"
_REPLACEMENTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\!", ""),
        (_SPACES, " "),
        (r"\\?\$|\\\(|\\\)|\\\[|\\\]", ""),
        (_COLOUR, ""),
        (r"\u2212|\u2013", "-"),
        (r"\{,\}\s*", ","),
        (_MOD_IN_TEXT, " mod "),
        (_MODULUS, ""),
        (_DEGREE, ""),
        (r"(?<=\d)_\{\s*10\s*\}", ""),
        (r"\\equiv(?![A-Za-z])", "\u2261"),
    )
)
_TEXT_COMMANDS = (
    "text|textbf|textit|textrm|texttt|textsf|textsc|textup|textnormal|emph|underline|mathbf|mathrm|mathit|mathsf|mathtt|mathnormal|bm"
    "|boldsymbol|mbox|hbox|operatorname"
)
_TEXT = re.compile(rf"\\(?:{_TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
# Letters in these are variables and functions ("8\mathbf{x}", "\operatorname{lcm}(8)"), never units.
_SYMBOL = re.compile(
    r"\\(?:operatorname|mathbf|mathit|mathnormal|mathsf|mathtt|bm|boldsymbol)\s*\{([^{}\d]*[A-Za-z][^{}\d]*)\}"
    r"|\\(?:text|textrm|textit|mathrm|mbox)\s*\{\s*([eiknxyKMB]|log|ln|sin|cos|tan|lcm|gcd|sqrt)\s*\}"
)
# "cm^2": the power is the unit's.
_UNIT_POWER = re.compile(r"(\\(?:text|textrm|mathrm|mbox)\s*\{[^{}\d]*[A-Za-z][^{}\d]*\})\s*\^\s*(?:[23]|\{\s*[23]\s*\})")
# Words that make another number, or no single one, of the number beside them; other words are units and remarks.
_CHANGING = re.compile(
    r"\b(?:and|or|not|no|minus|negative|plus|times|than|least|most|about|around|approximately|approx|roughly|over|under|between|to|half|dozen"
    r"|hundred|thousand|million|billion|trillion|percent|per\s*cent|pct|squared|cubed|factorial|choose|if|unless|twice|thrice"
    r"|square\s+root)\b|%",
    re.IGNORECASE,
)
_UNITS = (
    "unit|cm|mm|km|m|meter|metre|centimeter|centimetre|kilometer|kilometre|inch|inches|foot|feet|mile|second|minute|hour|day|degree|dollar"
    "|cent|point|way|pair|triple|solution|integer|number|value|square|cubic|sq|people|permutation|arrangement|element|subset|term|total"
)
_TRAILING_UNITS = re.compile(rf"(?<=\d)\s+(?:(?:{_UNITS})s?\b\s*)+$", re.IGNORECASE)
_LABEL = re.compile(r"^(?:the\s+)?(?:final\s+)?answer\s*(?:is\b)?\s*:?\s*(?=[\d+(-])", re.IGNORECASE)
_WRAPPED = re.compile(r"(\*{1,3}|_{1,2}|`{1,3}|[\"'])(.+)\1", re.DOTALL)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_INTEGER = re.compile(r"([+-]?)\s*(\d+)(?:\.(0*))?")
# "1(4)/(2)" is a mixed number, and "(48)/(2)4" a product: neither side of the bar stands alone.
_RATIO = re.compile(r"([+-]?)\s*(\(\s*[+-]?\s*\d+\s*\)|\d+)\s*/\s*(\(\s*[+-]?\s*\d+\s*\)|[+-]?\d+)")
_INEQUALITY = re.compile(r"[<>]\s*=|=\s*[<>]")
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:([, ])\d{3})(?:\1\d{3})*(?![\d,])")
# A side of an equation that is a number and then the beginning of another equation: "35, b" of "a = 35, b = 70" without its comma.
_ANOTHER_BEGINS = re.compile(r"\s*[+-]?\d+\s+.*[A-Za-z]", re.DOTALL)


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

    Read are leading zeros (``070``), a decimal part of zeros (``70.0``), thousands (``1,234``, ``1{,}234``, ``1\,234``), degrees, text,
    font and colour commands (``\text{70}``, ``70\text{ cm}``), units in letters (``70 cm``), residues (``70 \pmod{1000}``), the integer
    side of an equation (``m+n=70``, ``70=m+n``), a quotient without remainder (``140/2``, ``\frac{140}{2}``), and the decimal digits of
    any script. Several values (``x=35, y=70``, ``35=70``) commit to none of them, and so do words that change a number
    (``70\text{ thousand}``).
    """
    if len(inner) > MAX_BOX_CHARACTERS:
        return None
    text = _ascii_digits(unwrap_boxes(inner))
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    shown = _without_text_commands(text)
    if shown is None:
        return None
    text = _FRACTION.sub(lambda found: f"({found[1] or found[2]})/({found[3] or found[4]})", shown)
    text = text.replace("{", "").replace("}", "").strip()
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[2]
    text = text.strip().rstrip(".,;\\ \n").strip()
    text = _LABEL.sub("", _TRAILING_UNITS.sub("", text))
    text = _GROUPED.sub(lambda found: found[0].replace(",", "").replace(" ", ""), text)
    if "," in text or ";" in text or _INEQUALITY.search(text):
        return None
    return _integer_side(text.rpartition("\u2261")[2].split("="))


def _ascii_digits(text: str) -> str:
    """The text with decimal digits of other scripts as 0 to 9. Superscripts and digits in circles are no decimal digits."""
    return text if text.isascii() else "".join(str(unicodedata.decimal(character, character)) for character in text)


def _without_text_commands(text: str) -> str | None:
    """Text commands that hold digits give their content, those that hold words (units) give two spaces, which no integer has.

    None where the words change what the number is.
    """
    text = _UNIT_POWER.sub(r"\1", text)
    while True:
        text = _SYMBOL.sub(lambda found: f" {found[1] or found[2]} ", text)
        if any(_CHANGING.search(found[1]) for found in _TEXT.finditer(text)):
            return None
        shorter = _TEXT.sub(lambda found: found[1] if re.search(r"\d", found[1]) else "  ", text)
        if shorter == text:
            return text
        text = shorter


def _integer_side(sides: list[str]) -> int | None:
    """The value of the sides of an equation that are integers; None where they differ or where there are several equations."""
    if any(_ANOTHER_BEGINS.match(side) for side in sides[1:-1]):
        return None
    values = {value for side in sides if (value := _integer_value(side)) is not None}
    return values.pop() if len(values) == 1 else None


def _integer_value(text: str) -> int | None:
    text = text.strip()
    while len(text) > 1 and text[0] == "(" and text[-1] == ")" and "(" not in text[1:-1] and ")" not in text[1:-1]:
        text = text[1:-1].strip()
    if len(text) > _MAX_DIGITS or not text.isascii():
        return None
    if whole := _INTEGER.fullmatch(text):
        return int(whole[1] + whole[2])
    if ratio := _RATIO.fullmatch(text):
        numerator, denominator = (int(re.sub(r"[()\s]", "", part)) for part in (ratio[2], ratio[3]))
        numerator = -numerator if ratio[1] == "-" else numerator
        if denominator != 0 and numerator % denominator == 0:
            return numerator // denominator
    return None
