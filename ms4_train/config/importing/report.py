"""A translation as text: our run file with comments, and the report of what became of every key.

Exercise it: ``pytest tests/ms4_train/config/importing/test_report.py``.
"""

from __future__ import annotations

import textwrap
from typing import Any

from ms4_train.config.importing.draft import Draft
from ms4_train.config.nodes import KeyPath
from ms4_train.config.render import render_yaml

_WIDTH = 110


def commented_yaml(draft: Draft) -> str:
    """The run as a file of ours; comments stand above the keys they speak of."""
    heading = draft.comments.get((), [])
    return "".join(f"{line}\n" for line in [*_comment(heading, 0), *_section(draft, draft.run, ())])


def _section(draft: Draft, values: dict[str, Any], path: KeyPath) -> list[str]:
    lines: list[str] = []
    for key, value in values.items():
        place = (*path, key)
        lines += _comment(draft.comments.get(place, []), len(path))
        pad = "  " * len(path)
        if isinstance(value, dict) and value:
            lines += [f"{pad}{key}:", *_section(draft, value, place)]
        else:
            lines += [pad + line for line in render_yaml({key: value}).splitlines()]
    return lines


def _comment(lines: list[str], depth: int) -> list[str]:
    pad = "  " * depth + "# "
    cut = textwrap.TextWrapper(_WIDTH - len(pad), break_on_hyphens=False)
    return [pad + part for line in map(_one_line, lines) for part in cut.wrap(line) or [""]]


def report(draft: Draft) -> str:
    """What was translated, what was dropped and why, and what to beware of; ends with a newline."""
    translated = [entry for entry in draft.entries if entry.target is not None]
    dropped = [entry for entry in draft.entries if entry.target is None]
    rows = [tuple(map(_one_line, (entry.source, entry.target or "", entry.words))) for entry in translated]
    wide, wider = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    lines = [f"translated ({len(rows)}):", *(f"  {source:<{wide}} -> {target:<{wider}}  {words}" for source, target, words in rows)]
    lines.append(f"dropped ({len(dropped)}):")
    for entry in dropped:
        lines += textwrap.wrap(
            _one_line(f"{entry.source}: {entry.words}"), _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
    lines.append(f"warnings ({len(draft.warnings)}):")
    for warning in draft.warnings:
        lines += textwrap.wrap(_one_line(warning), _WIDTH, initial_indent="  ! ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """Outside text may hold line breaks and control characters; a report's line stays one line."""
    return "".join(character if character.isprintable() else " " for character in text)
