r"""A deterministic second opinion where the official answer is one quantity, so that a judge can be audited without another judge.

Of the 100 official answers of AA-LCR 1.0, 25 are bare numbers (``5597456``, ``0.0153``) and four more are one number with a sign or a
scale word (``$55.2 million``, ``50%.``). For these, and for no others, an answer is searched for the one quantity that it commits to: in
the last ``\boxed``, on the line that says what the answer is, in the last bold number, or in the whole answer where it names one only.
That is compared with the official one, exactly:

- percent, percentage points and the decimal fraction are one value (``1.53%`` is ``0.0153``), and so are scales and notations
  (``$16.4 million`` is ``16,400,000``; powers of ten are not read);
- where the question asks for thousands, millions or billions, the official number may be in that unit or written out;
- there is no tolerance: ``1.5%`` is not ``0.0153``.

The opinion is ``wrong`` when the quantity differs, or when the official one stands nowhere in the answer; ``failed`` when it stands there
among others and the answer does not say which it means; None when the official answer is no single quantity. The version in
``NUMERIC_GRADER`` changes whenever an opinion could.

Exercise it: ``pytest tests/evals/ms4_evals/graders/judge/test_numeric.py``.
"""

from __future__ import annotations

import re
from fractions import Fraction

from ms4_evals.graders.base import Opinion
from ms4_evals.graders.boxed import last_boxed

NUMERIC_GRADER = "numeric/1.0"

_MAX_DIGITS = 40
_MAX_ANSWER_CHARACTERS = 100_000

_SCALES = {
    "k": 3, "thousand": 3, "thousands": 3, "m": 6, "mn": 6, "mm": 6, "million": 6, "millions": 6, "b": 9, "bn": 9, "billion": 9,
    "billions": 9, "tn": 12, "trillion": 12, "trillions": 12,
}  # fmt: skip
_CURRENCY = r"(?:US|A|AU|NZ|C|CA)?[$€£¥]|(?:USD|AUD|EUR|GBP)\s?"
_DIGITS = r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+(?![,\d])|\d+)(?:\.\d+)?|\.\d+"
_SCALE = r"thousands?|millions?|billions?|trillions?|bn|mn|tn|[kK](?![A-Za-z])|(?<=\d)(?:M|B|m|b|mm|MM)(?![A-Za-z])"
_PERCENT = r"%|per\s?cent(?:age\s+points?)?\b|percentage\s+points?\b|pct\b|p\.?p\.?(?![A-Za-z])"
_QUANTITY = re.compile(
    rf"(?<![\w.,])(?P<sign>[-+\u2212\u2013]\s?)?(?:{_CURRENCY})?(?P<inner>[-\u2212])?(?P<digits>{_DIGITS})"
    rf"(?:[\s-]?(?P<scale>{_SCALE})\b)?(?:\s?(?P<percent>{_PERCENT}))?(?![A-WYZa-wyz0-9_]|[xX]\w|\.\d)",
)
_SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate(_SMALL.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
_WORD = re.compile(
    rf"\b({'|'.join(_TENS.split())})(?:[\s-]({'|'.join(_SMALL.split()[1:10])}))?\b|\b({'|'.join(_SMALL.split())})\b", re.IGNORECASE
)
_SAYS = re.compile(r"\banswer\b[^.:=\n]{0,60}?(?:\bis\b|\bwas\b|\bare\b|:|=)\s*:?", re.IGNORECASE)
_BOLD = re.compile(r"\*\*(.+?)\*\*|__(.+?)__")
_UNIT = re.compile(r"\bin\s+(?:US\s+dollars\s+)?(thousands|millions|billions)\b", re.IGNORECASE)
_LATEX = (
    (re.compile(r"\\[,!;:]|\\ "), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?=[%$])"), ""),
    (re.compile(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}"), r"\1"),
)


def numeric_opinion(answer: str, gold: str, question: str = "") -> Opinion | None:
    """What the deterministic check says of an answer.

    Args:
        answer: the final answer, without thinking.
        gold: the official answer.
        question: says in which unit the official number is.
    """
    official = read_gold(gold, question)
    if official is None:
        return None
    text = _plain(answer[-_MAX_ANSWER_CHARACTERS:])
    committed = _committed(text)
    if committed is not None:
        return "correct" if committed in official else "wrong"
    return "failed" if official & set(quantities(text.replace("**", ""))) else "wrong"


def read_gold(gold: str, question: str = "") -> frozenset[Fraction] | None:
    """The values that an official answer of one quantity may be written as, or None where it is no single quantity."""
    text = _plain(gold).strip().rstrip(".").strip()
    found = _QUANTITY.fullmatch(text)
    if found is None or len(found["digits"]) > _MAX_DIGITS:
        return None
    value = _value(found)
    unit = _UNIT.search(question)
    scaled = {value * 10 ** _SCALES[unit[1].lower()]} if unit and not found["scale"] and not found["percent"] else set()
    return frozenset({value, *scaled})


def quantities(text: str) -> list[Fraction]:
    """Every quantity of a text, in order. ``Q4``, ``FY23`` and ``2H23`` are none; number words count where there are no digits."""
    found = [_value(match) for match in _QUANTITY.finditer(text) if len(match["digits"]) <= _MAX_DIGITS]
    if found:
        return found
    return [
        Fraction(_WORDS[match[3].lower()] if match[3] else _WORDS[match[1].lower()] + (_WORDS[match[2].lower()] if match[2] else 0))
        for match in _WORD.finditer(text)
    ]


def _committed(text: str) -> Fraction | None:
    """The one quantity that a text commits to, or None."""
    boxed = last_boxed(text)
    if boxed is not None:
        return _only(boxed)
    said = [match.end() for match in _SAYS.finditer(text)]
    if said:
        line = text[said[-1] :].lstrip(" *_\n").split("\n", 1)[0]
        bold = _bold(text[said[-1] - 2 : said[-1] + len(line) + 10].split("\n", 1)[0])
        for span in (line, *bold[:1]):
            if (value := _only(span)) is not None:
                return value
    bold = [span for span in _bold(text) if quantities(span)]
    if bold and (value := _only(bold[-1])) is not None and len({*map(_only, bold)}) == 1:
        return value
    return _only(text.replace("**", ""))


def _bold(text: str) -> list[str]:
    return [match[1] or match[2] for match in _BOLD.finditer(text)]


def _only(text: str) -> Fraction | None:
    values = set(quantities(text))
    return values.pop() if len(values) == 1 else None


def _value(found: re.Match[str]) -> Fraction:
    value = Fraction(re.sub(r"[,\u00a0\u2009\u202f]", "", found["digits"]))
    if found["scale"]:
        value *= 10 ** _SCALES[found["scale"].lower()]
    if found["percent"]:
        value /= 100
    is_negative = any(sign and sign.strip() in {"-", "\u2212", "\u2013"} for sign in (found["sign"], found["inner"]))
    return -value if is_negative else value


def _plain(text: str) -> str:
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text
