"""Reading a judge's reply: one of two words, or JSON that holds one of them; whatever else it says is no verdict.

``INCORRECT`` contains ``CORRECT``, so nothing is searched for: the whole reply has to be the verdict. Case, white space, quotes, emphasis
and a closing full stop are no part of it.

Exercise it: ``pytest tests/evals/ms4_evals/graders/judge/test_replies.py``.
"""

from __future__ import annotations

import re
from typing import Literal

from ms4_evals.graders.judge.prompts import JudgeVersion
from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import parse_json

MAX_REPLY_CHARACTERS = 20_000

_AROUND = "[\\s*_`\"'\u201c\u201d\u2018\u2019]*+"  # possessive: thousands of spaces are not shared out in every way
_WORD = re.compile(f"{_AROUND}(CORRECT|INCORRECT){_AROUND}[.!]?{_AROUND}", re.IGNORECASE)
_FENCE = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.IGNORECASE | re.DOTALL)


def read_verdict(version: JudgeVersion, reply: str) -> Literal["correct", "wrong"] | None:
    """The verdict that a reply gives under a version's protocol, or None.

    1.0 wants the bare word. 1.1 wants a JSON object, which may stand in a code fence, with a ``verdict`` that is the bare word; further
    keys are ignored, a key that stands twice is not.
    """
    if len(reply) > MAX_REPLY_CHARACTERS:
        return None
    if version == "1.0":
        return _word(reply)
    fenced = _FENCE.fullmatch(reply)
    try:
        value = parse_json((fenced[1] if fenced else reply).strip())
    except UntrustedInputError:
        return None
    verdict = value.get("verdict") if isinstance(value, dict) else None
    return _word(verdict) if isinstance(verdict, str) else None


def _word(text: str) -> Literal["correct", "wrong"] | None:
    found = _WORD.fullmatch(text)
    if found is None:
        return None
    return "correct" if found[1].upper() == "CORRECT" else "wrong"
