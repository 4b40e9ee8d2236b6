"""A comparison of two runs for people: as Markdown, and as tables on a terminal.

Exercise it: ``pytest tests/evals/ms4_evals/test_compare_text.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from ms4_evals.markdown import in_table, number, p_value, percent, points, table
from ms4_evals.outside_text import one_line
from ms4_evals.report_text import pairing_lines

SHOWN_PROBLEMS = 30
"""On a terminal; Markdown and JSON have all."""


def comparison_markdown(comparison: dict[str, Any]) -> str:
    """The comparison as Markdown: per task and mode the scores, the paired difference, the exact tests, and the problems that differ."""
    first, second = map(in_table, _names(comparison))
    level = f"{100 * comparison['confidence']:g} %"
    lines = [f"# {first} against {second}", "", f"Differences are {first} - {second}.", ""]
    for task in comparison["tasks"]:
        lines += [f"## {in_table(task['title'])}", "", f"board `{task['board_id'][:12]}`, grader {in_table(task['grader'])}", ""]
        lines += table(
            ["mode", f"{first} %", f"{second} %", "difference, points", f"{level} interval", "problems", "left out"],
            [_mode_row(mode) for mode in task["modes"]],
        )
        for mode in task["modes"]:
            lines += [f"### {mode['mode']}", "", *pairing_lines(mode["difference"], first, second)]
            lines += _problem_lines(mode, first, second)
    for side, label in (("only_first", first), ("only_second", second)):
        if comparison[side]:
            lines.append(f"- only in {label}: {'; '.join(in_table(name) for name in comparison[side])}")
    return "\n".join(lines) + "\n"


def comparison_tables(comparison: dict[str, Any]) -> Iterator[Table]:
    """The comparison as tables for a terminal: one of the scores, then one of the problems per task and mode."""
    first, second = map(one_line, _names(comparison))
    level = f"{100 * comparison['confidence']:g} %"
    scores = Table(title=Text(f"{first} against {second}"), title_justify="left", title_style="bold")
    scores.add_column("task", overflow="fold")
    scores.add_column("mode")
    for words in (f"{first} %", f"{second} %", "points", f"{level} interval", "McNemar p", "sign-flip p", "times the characters"):
        scores.add_column(Text(words), justify="right", overflow="fold")
    for task in comparison["tasks"]:
        for mode in task["modes"]:
            scores.add_row(Text(one_line(task["title"])), mode["mode"], *map(Text, _score_cells(mode)))
    yield scores
    for task in comparison["tasks"]:
        for mode in task["modes"]:
            if mode["problems"]:
                yield _problem_table(task, mode, first, second)


def _names(comparison: dict[str, Any]) -> tuple[str, str]:
    """What to call the two runs: their labels, with the starts of their ids where the labels are the same."""
    first, second = comparison["first"], comparison["second"]
    if first["label"] != second["label"]:
        return first["label"], second["label"]
    return f"{first['label']} [{first['run_id'][:6]}]", f"{second['label']} [{second['run_id'][:6]}]"


def _mode_row(mode: dict[str, Any]) -> list[str]:
    difference = mode["difference"]
    return [
        mode["mode"],
        percent(mode["first"]["score"]),
        percent(mode["second"]["score"]),
        points(difference["value"]),
        f"{points(difference['low'])} to {points(difference['high'])}",
        str(difference["problems"]),
        f"{mode['first']['left_out']} and {mode['second']['left_out']}",
    ]


def _score_cells(mode: dict[str, Any]) -> list[str]:
    difference = mode["difference"]
    counts, ratio = difference["mcnemar"], difference["length_ratios"].get("total_chars")
    return [
        *_mode_row(mode)[1:5],
        p_value(counts["p_value"]) if counts else "-",
        p_value(difference["sign_flip_p"]),
        f"{ratio['value']:.3g}" if ratio else "-",
    ]


def _problem_lines(mode: dict[str, Any], first: str, second: str) -> list[str]:
    if not mode["problems"]:
        return ["No problem differs.", ""]
    header = ["problem", f"{first} correct", f"{second} correct", f"{first} characters", f"{second} characters"]
    return table(header, [[in_table(row["problem"]), *_problem_cells(row)] for row in mode["problems"]])


def _problem_cells(row: dict[str, Any]) -> list[str]:
    sides = (row["first"], row["second"])
    return [*(f"{side['correct']} of {side['samples']}" for side in sides), *(number(side["total_chars"], 0) for side in sides)]


def _problem_table(task: dict[str, Any], mode: dict[str, Any], first: str, second: str) -> Table:
    rows = mode["problems"]
    caption = f"and {len(rows) - SHOWN_PROBLEMS:,} more" if len(rows) > SHOWN_PROBLEMS else None
    title = Text(f"{one_line(task['title'])}, {mode['mode']}: {len(rows):,} problems differ")
    drawn = Table(title=title, title_justify="left", title_style="bold", caption=caption, caption_justify="left")
    drawn.add_column("problem", overflow="fold")
    for words in (f"{first} correct", f"{second} correct", f"{first} characters", f"{second} characters"):
        drawn.add_column(Text(words), justify="right", overflow="fold")
    for row in rows[:SHOWN_PROBLEMS]:
        drawn.add_row(Text(one_line(row["problem"])), *map(Text, _problem_cells(row)))
    return drawn
