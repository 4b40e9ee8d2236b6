"""The leaderboard on a terminal.

Exercise it: ``ms4 leaderboard show results.sqlite``, or ``pytest tests/evals/ms4_evals/leaderboard/test_table.py``.
"""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ms4_evals.leaderboard.collect import NO_SANDBOX, Board, Cell, Column, Row
from ms4_evals.statistics.summary import Summary


def board_table(board: Board) -> Table:
    """One board as a table that fits 100 characters with two modes.

    A cell holds the score with its interval, mean characters and mean tokens of thinking and of the answer, and what went unanswered.
    """
    caption = (
        f"board {board.board_id[:12]}, grader {board.grader_id}; intervals at 95 %, clustered by problem; lengths: thinking + answer, means"
    )
    table = Table(title=Text(board.title), caption=Text(caption), title_style="bold", caption_justify="left", show_lines=True)
    table.add_column("model", overflow="fold")
    for column in board.columns:
        table.add_column(Text(_heading(column)), justify="right")
    table.add_column("high - none, points", justify="right", no_wrap=True)
    for row in board.rows:
        cells = [_cell_text(row.cells.get(column.column_id)) for column in board.columns]
        table.add_row(Text(row.label), *cells, Text(difference_text(row)))
    return table


def score_text(cell: Cell) -> str:
    """``97.0 [95.1, 98.2]``; an incomplete evaluation says how far it is instead of giving a score."""
    summary, headline = cell.summary, cell.headline
    if headline is None:
        errors = f", {summary.errors} errors" if summary.errors else ""
        return f"unfinished\n{summary.graded}/{summary.evaluation.planned}{errors}"
    return f"{100 * headline.value:.1f} [{100 * headline.low:.1f}, {100 * headline.high:.1f}]"


def difference_text(row: Row) -> str:
    """``+77.5 [+74.1, +80.9]``, or a hyphen."""
    if row.difference is None:
        return "-"
    return f"{100 * row.difference.value:+.1f} [{100 * row.difference.low:+.1f}, {100 * row.difference.high:+.1f}]"


def mean_length(summary: Summary, name: str) -> float | None:
    """Mean over all samples of a length, or None without samples."""
    lengths = summary.lengths[name]["all"]
    return None if lengths is None else lengths.mean


def length_text(value: float | None) -> str:
    """A length with one decimal below a hundred, and with thousands separated."""
    if value is None:
        return "-"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _heading(column: Column) -> str:
    temperature, limit = column.sampling.get("temperature"), column.sampling.get("max_tokens")
    return f"{column.mode}: score %\ntemperature {temperature},\nat most {limit:,} tokens\n{column.column_id[:12]}"


def _cell_text(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-")
    summary = cell.summary
    text = Text(score_text(cell), style="bold")
    if cell.headline is not None or NO_SANDBOX in cell.marks:
        for mark in cell.marks:
            text.append(f"\n{mark}", style="not bold yellow")
    for unit in ("chars", "tokens"):
        thinking, answer = (length_text(mean_length(summary, f"{part}_{unit}")) for part in ("thinking", "answer"))
        text.append(f"\n{unit} {thinking} + {answer}", style="not bold")
    for verdict, words in (("truncated", "cut off"), ("no-answer", "no answer")):
        if summary.verdicts[verdict]:
            text.append(f"\n{summary.verdicts[verdict]:,} {words}", style="not bold yellow")
    return text
