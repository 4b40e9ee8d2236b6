"""Thinking that a server leaves in the text of an answer, between tags.

Tags count only where a model that thinks puts them: the first one opens the text. An answer that mentions ``[THINK]`` later is an answer.
In a text that did begin with a thought, tags mean what they mean to the engine of this program, which goes by token: each opening one leads
into thinking and each closing one out of it, doubled and stray ones say nothing, and all of them are left out.
Exercise it: ``pytest tests/evals/ms4_evals/clients/servers/test_tags.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FAMILIES = (re.compile(r"\[(/?)THINK\]"), re.compile(r"<(/?)think>"))
# Templates of some models write the opening tag into the prompt, so that the answer shows the closing one alone. Those models end the line
# with it; prose that mentions it seldom does.
_LONE_CLOSING = re.compile(r"</think>(?=\s*\n|\s*\Z)")


@dataclass(frozen=True)
class Split:
    """``is_open``: the text ends within a thought."""

    thinking: str
    answer: str
    is_open: bool


def split_thinking(text: str) -> Split:
    """Tell thinking between tags from the answer. Whitespace stays as it was written."""
    start = len(text) - len(text.lstrip())
    for family in _FAMILIES:
        first = family.match(text, start)
        if first is not None and not first[1]:
            return _follow(text[start:], family, in_thought=False)
    family = _FAMILIES[1]
    first, lone = family.search(text), _LONE_CLOSING.search(text)
    if first is not None and lone is not None and first.start() == lone.start():
        return _follow(text, family, in_thought=True)
    return Split("", text, False)


def _follow(text: str, family: re.Pattern[str], *, in_thought: bool) -> Split:
    thinking: list[str] = []
    answer: list[str] = []
    end = 0
    for tag in family.finditer(text):
        (thinking if in_thought else answer).append(text[end : tag.start()])
        in_thought, end = not tag[1], tag.end()
    (thinking if in_thought else answer).append(text[end:])
    return Split("".join(thinking), "".join(answer), in_thought)
