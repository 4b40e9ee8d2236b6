"""Outside text (answers of models, labels of other people's stores) made harmless before anybody prints it.

Exercise it: ``pytest tests/evals/ms4_evals/test_outside_text.py``.
"""

from __future__ import annotations

import re

# C0 without tab and line feed, delete, C1, and the marks that reorder text on screen.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with every control character but tab and line feed replaced, so that it cannot steer a terminal or a page."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The same on one line, with runs of white space made one space."""
    return " ".join(printable(text).split())
