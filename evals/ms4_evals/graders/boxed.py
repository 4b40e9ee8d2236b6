r"""Finding the last balanced ``\boxed{...}`` or ``\fbox{...}`` of a text.

One pass with a stack, so a text of nothing but opening boxes costs no more than any other of its length.
Exercise it: ``pytest tests/evals/ms4_evals/graders/test_boxed.py``.
"""

from __future__ import annotations

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]")


def last_boxed(text: str) -> str | None:
    r"""What stands inside the last balanced box, or None when there is no balanced box.

    A box inside a box belongs to the outer one: ``\boxed{x=\boxed{7}}`` gives ``x=\boxed{7}``. A box that never closes is passed over, so
    ``\boxed{1} \boxed{2`` gives ``1``. Escaped braces (``\{``) do not count as braces.
    """
    open_braces: list[int | None] = []
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        symbol = match.group()
        if symbol == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None:
                last = (start, match.start())
        elif symbol == "{":
            open_braces.append(None)
        elif symbol[1] in "bf":
            open_braces.append(match.end())
    return None if last is None else text[last[0] : last[1]]


def unwrap_boxes(text: str) -> str:
    r"""The same text without the box commands in it: ``x=\boxed{7}`` gives ``x={7}``."""
    return re.sub(r"\\(?:boxed|fbox)\s*\{", "{", text)
