"""Small pieces of Markdown: tables that outside text cannot break, and numbers as people read them.

Exercise it: ``pytest tests/evals/ms4_evals/test_markdown.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ms4_evals.outside_text import one_line


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal; a hyphen for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def points(share: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "-" if share is None else f"{100 * share:+.1f}"


def interval(values: Mapping[str, Any] | None) -> str:
    """``low to high`` of a score in percent; a hyphen for None."""
    return "-" if values is None else f"{percent(values['low'])} to {percent(values['high'])}"


def p_value(p: float | None) -> str:
    """A p-value with two significant digits."""
    return "-" if p is None else f"{p:.2g}"


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands separated; a hyphen for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def in_table(text: str) -> str:
    """Outside text made fit for a cell of a Markdown table: no cell, code, HTML, link or image of its own."""
    return one_line(text).replace("|", "\\|").replace("`", "'").replace("<", "&lt;").replace("[", "\\[")


def in_code(text: str) -> str:
    """Outside text as a code span outside of tables, where nothing of it is Markdown."""
    return f"`{one_line(text).replace('`', chr(39)) or ' '}`"


def counted(counts: Mapping[str, int]) -> str:
    """``WA 12, TLE 3``."""
    return ", ".join(f"{in_table(name)} {count:,}" for name, count in counts.items())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with its first column to the left and the others to the right, and an empty line after it; nothing without rows."""
    if not rows:
        return []
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, marks, *rows)] + [""]
