"""The leaderboard as one plain HTML page: no network, no outside file, and every outside text escaped.

A content security policy lets only the page's own style, its own sorting script (by hash) and embedded images take effect, so even a text
that slipped through escaping could not run. Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_page.py``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from ms4_evals.leaderboard.collect import Board, Cell, Column, Row
from ms4_evals.leaderboard.page_assets import SCRIPT, STYLE
from ms4_evals.leaderboard.table import difference_text, length_text, mean_length, score_text
from ms4_evals.outside_text import printable
from ms4_evals.statistics.summary import Summary
from ms4_evals.store.records import GradedSample

_CLIPPED_CHARACTERS = 4000

_PARTS = ("thinking", "answer")
_HEADINGS = ("score %", *_PARTS, "cut off", "no answer")


def render_page(boards: Sequence[Board], plot: bytes) -> str:
    """The whole page.

    Args:
        boards: what it shows.
        plot: a PNG image.
    """
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    image = base64.b64encode(plot).decode()
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Leaderboard</title>',
        f"<style>{STYLE}</style></head><body><main><h1>Leaderboard</h1>",
        "<p>Scores in both reasoning modes, with 95 % intervals clustered by problem, beside the mean length of thinking and of the final"
        " answer: characters, and tokens below them."
        " Only scores whose problems, prompts, grader and sampling are equal stand in one column. Click a heading to sort.</p>",
        f'<figure><img alt="Score against output length; the same numbers stand in the tables below."'
        f' src="data:image/png;base64,{image}"></figure>',
        *(_board_html(board) for board in boards),
        f"</main><script>{SCRIPT}</script></body></html>\n",
    ]
    return "".join(parts)


def _board_html(board: Board) -> str:
    heads = [_head("model", "left"), _head("points", "group-start")]
    groups = ['<th></th><th class="group">high &minus; none</th>']
    for column in board.columns:
        groups.append(f'<th class="group" colspan="{len(_HEADINGS)}">{_column_html(column)}</th>')
        heads += [_head(name, "group-start" if index == 0 else "") for index, name in enumerate(_HEADINGS)]
    rows = "".join(_row_html(board, row) for row in board.rows)
    examples = "".join(_examples_html(board, row) for row in board.rows)
    return (
        f"<section><h2>{safe(board.title)}</h2>"
        f'<p class="facts">{board.num_problems} problems, grader {safe(board.grader_id)},'
        f' board <code title="{safe(board.board_id)}">{safe(board.board_id[:12])}</code></p>'
        f'<div class="scroll"><table class="sortable"><thead><tr>{"".join(groups)}</tr><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div><h3>Samples</h3>{examples}</section>"
    )


def _column_html(column: Column) -> str:
    sampling = ", ".join(f"{safe(str(key))} {safe(str(value))}" for key, value in column.sampling.items())
    identity = f'<code title="{safe(column.column_id)}">{safe(column.column_id[:12])}</code>'
    return f'{safe(column.heading)}<br><span class="facts">{sampling}, {identity}</span>'


def _head(name: str, css: str) -> str:
    return f'<th class="{css}"><button type="button">{safe(name)}</button></th>'


def _row_html(board: Board, row: Row) -> str:
    value = row.difference.value if row.difference else None
    cells = [f'<td class="left"><span title="run {safe(row.run_id)}">{safe(row.label)}</span></td>']
    cells.append(_number(value, difference_text(row), "group-start strong"))
    for column in board.columns:
        cell = row.cells.get(column.column_id)
        cells += _cell_html(cell.summary) if cell else [_number(None, "-", "group-start")] + [_number(None, "-")] * (len(_HEADINGS) - 1)
    return f"<tr>{''.join(cells)}</tr>"


def _cell_html(summary: Summary) -> list[str]:
    value = summary.score.value if summary.is_complete and summary.score else None
    cells = [_number(value, score_text(summary), "group-start strong")]
    for part in _PARTS:
        characters, tokens = (mean_length(summary, f"{part}_{unit}") for unit in ("chars", "tokens"))
        cells.append(_number(characters, length_text(characters), below="" if tokens is None else f"{length_text(tokens)} tokens"))
    counts = [summary.verdicts["truncated"], summary.verdicts["no-answer"]]
    return cells + [_number(count, str(count)) for count in counts]


def _number(value: float | None, text: str, css: str = "", *, below: str = "") -> str:
    """A cell that sorts by its value, with the interval of its text or ``below`` under it; cells without a value sort last."""
    attribute = "" if value is None else f' data-value="{value!r}"'
    first, space, interval = safe(text).partition(" [")
    under = f"[{interval}" if space else safe(below)
    tail = f'<span class="below">{under}</span>' if under else ""
    return f'<td class="{css}"{attribute}>{first}{tail}</td>'


def _examples_html(board: Board, row: Row) -> str:
    parts = [
        _cell_examples_html(board, column, row.cells[column.column_id])
        for column in board.columns
        if column.column_id in row.cells and row.cells[column.column_id].examples
    ]
    return f"<details><summary>{safe(row.label)}</summary>{''.join(parts)}</details>" if parts else ""


def _cell_examples_html(board: Board, column: Column, cell: Cell) -> str:
    questions = {problem.problem_id: problem.question for problem in cell.summary.evaluation.problems}
    samples = "".join(_sample_html(sample, questions[sample.problem_id]) for sample in cell.examples)
    return f"<h4>{safe(column.heading)}: {safe(board.task)}</h4>{samples}"


def _sample_html(sample: GradedSample, question: str) -> str:
    read = "no box" if sample.extracted is None else f"read {safe(sample.extracted)}"
    facts = (
        f"gold {safe(sample.gold)}, {read}; thinking {len(sample.thinking):,} characters"
        f" ({sample.thinking_tokens:,} tokens), answer {len(sample.answer):,} characters ({sample.answer_tokens:,} tokens)"
    )
    if sample.opinion is not None:
        facts += f"; math-verify: {safe(sample.opinion)}"
    if sample.error is not None:
        facts += f"; {safe(sample.error)}"
    thinking = f"<dt>thinking</dt><dd><pre>{_clipped(sample.thinking)}</pre></dd>" if sample.thinking else ""
    return (
        f'<details class="sample"><summary><span class="verdict {safe(sample.verdict)}">{safe(sample.verdict)}</span>'
        f" {safe(sample.problem_id)}, sample {sample.sample_index}</summary>"
        f'<p class="facts">{facts}</p><dl><dt>question</dt><dd><pre>{_clipped(question)}</pre></dd>{thinking}'
        f"<dt>final answer</dt><dd><pre>{_clipped(sample.answer)}</pre></dd></dl></details>"
    )


def _clipped(text: str) -> str:
    """Outside text made safe; of a long one its beginning and its end."""
    if len(text) > _CLIPPED_CHARACTERS:
        half = _CLIPPED_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"
    return safe(text)


def safe(text: str) -> str:
    """Text for an element or a quoted attribute: escaped, and without control characters."""
    return escape(printable(text))
