"""From an answer to the program in it.

Two readings. LiveCodeBench's own (``lcb_runner/utils/extraction_utils.py``, commit 28fef95) takes what stands between the last two lines
that hold three backticks, wherever in the line; a fence that never closes, or backticks in running text, make it pair the wrong lines.
The strict reading follows CommonMark's fences, takes the last block, and also a last one that the answer ends without closing.

Exercise it: ``pytest tests/evals/ms4_evals/graders/livecodebench/test_extraction.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = "```"
# A fence may be indented by any amount (lists), and stand behind a list's or a quotation's mark. An opening fence names no backtick.
_OPENING = re.compile(r"\s*(?:(?:[-*+>]|\d{1,9}[.)])\s+)*(`{3,})[^`]*")


@dataclass(frozen=True)
class Extraction:
    """The code of an answer.

    Attributes:
        code: empty where the answer holds none.
        is_closed: the block's closing fence was there. Code that is not closed is complete only where the answer was not cut off.
    """

    code: str
    is_closed: bool


def extract_code(answer: str) -> str:
    """The text between the last two lines that hold three backticks; empty where there are fewer than two such lines."""
    lines = answer.split("\n")
    fences = [number for number, line in enumerate(lines) if _FENCE in line]
    if len(fences) < 2:
        return ""
    return "\n".join(lines[fences[-2] + 1 : fences[-1]])


def extract_code_strict(answer: str) -> Extraction:
    """The last fenced block of an answer, closed or not.

    A block opens at a line that begins with three backticks or more and a word without backticks; it closes at a line of nothing but at
    least as many backticks. A line that opens and closes (```` ```x``` ````) is text, and so are backticks inside a line of code. Inside
    a block, a fence with a word (```` ```python ````) begins a new block: the one before was never closed. Fences of tildes are text, as
    they are to LiveCodeBench.
    """
    found = Extraction("", is_closed=True)
    block: list[str] | None = None
    width = 0
    for line in answer.split("\n"):
        ticks = line.strip()
        if block is not None and len(ticks) >= width and set(ticks) == {"`"}:
            found = Extraction("\n".join(block), is_closed=True)
            block = None
        elif (opening := _OPENING.fullmatch(line)) and (block is None or ticks.strip("`")):
            block, width = [], len(opening[1])
        elif block is not None:
            block.append(line)
    return found if block is None else Extraction("\n".join(block), is_closed=False)
