r"""Finding the last balanced ``\boxed{...}``, ``\fbox{...}`` or ``\framebox{...}`` of a text that holds something.

One pass with a stack, so a text of nothing but opening boxes costs no more than any other of its length.
Exercise it: ``pytest tests/evals/ms4_evals/graders/test_boxed.py``.
"""

from __future__ import annotations

import re

_NAMES = r"(?:boxed|fbox|framebox)"
# MathArena, whose prompt is used, takes a box without its backslash too; a word that merely ends in one is none.
_BOX = rf"(?:\\|(?<![A-Za-z])){_NAMES}\s*\{{"
# In LaTeX a box without braces holds one token. Who writes ``\boxed 70`` means 70; a number that goes on otherwise is not guessed at.
_BARE = rf"\\{_NAMES}\s*(?P<bare>[+-]?\d++(?:(?:,|\{{,\}})\d{{3}}(?!\d))*+(?![.,/^_]?\d))"
_PIECES = re.compile(rf"{_BOX}|{_BARE}|\\[{{}}]|[{{}}]", re.ASCII)
_COMMANDS = re.compile(rf"(?:\\|(?<![A-Za-z])){_NAMES}\s*(?=\{{)|\\{_NAMES}\s*(?=[+-]?\d)", re.ASCII)
_SOMETHING = re.compile(r"\S")


def last_boxed(text: str) -> str | None:
    r"""What stands inside the last balanced box that is not empty, or None when there is none.

    A box inside a box belongs to the outer one: ``\boxed{x=\boxed{7}}`` gives ``x=\boxed{7}``. A box that never closes is passed over, so
    ``\boxed{1} \boxed{2`` gives ``1``; so is an empty one, which only speaks of boxes ("the answer, in \boxed{}, is ..."). Escaped braces
    (``\{``) do not count as braces.
    """
    open_braces: list[int | None] = []
    last: tuple[int, int] | None = None
    for match in _PIECES.finditer(text):
        piece = match.group()
        if match["bare"] is not None:
            last = match.span("bare")
        elif piece == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and _SOMETHING.search(text, start, match.start()):
                last = (start, match.start())
        elif piece == "{":
            open_braces.append(None)
        elif piece[-1] == "{" and len(piece) > 2:
            open_braces.append(match.end())
    return None if last is None else text[last[0] : last[1]]


def unwrap_boxes(text: str) -> str:
    r"""The same text without the box commands in it: ``x=\boxed{7}`` gives ``x={7}``."""
    return _COMMANDS.sub("", text)
