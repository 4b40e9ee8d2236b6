"""Style and scripts of the leaderboard's page: the files in ``site/``, put together in the order in which they build on each other.

Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_page_assets.py``.
"""

from __future__ import annotations

import functools
from pathlib import Path

_FOLDER = Path(__file__).with_name("site")
SCRIPTS = ("core.js", "table.js", "chart.js", "overview.js", "task.js", "breakdown.js", "samples.js", "sample.js", "main.js")
STYLE = "style.css"

_OPENING = """"use strict";
(() => {
const SITE = JSON.parse(document.getElementById("site").textContent);
const VERDICTS = SITE.verdicts, OPINIONS = SITE.opinions;
"""
_CLOSING = "})();\n"


@functools.cache
def script() -> str:
    """The whole script; it reads its values from the element ``site``."""
    return _OPENING + "".join(_read(name) for name in SCRIPTS) + _CLOSING


@functools.cache
def style() -> str:
    """The whole style."""
    return _read(STYLE)


def _read(name: str) -> str:
    text = (_FOLDER / name).read_text(encoding="utf-8")
    assert "</" not in text, "nothing in a script or style may look like the end of its element"
    return text
