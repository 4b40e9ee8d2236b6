"""The plot: score against length of the output, one panel per board, both modes of a run joined by a line.

Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_plot.py``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ms4_evals.leaderboard.collect import Board, Row
from ms4_evals.statistics.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette without its yellow, which is too pale for a line: told apart by the colour-blind too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_INK = "#222222"
_FAINT = "#d9d9d9"
_MAX_LEGEND_CHARACTERS = 48


def plot_png(boards: Sequence[Board], *, dpi: int = 160) -> bytes:
    """A PNG image of all boards.

    Points lie at mean characters of output (thinking and answer) and score; bars are 95 % intervals. Hollow is ``none``, filled is
    ``high``. Unfinished evaluations are left out, and a panel without points says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(boards))
    rows = -(-len(boards) // columns)
    figure = Figure(figsize=(6.9 * columns, 4.9 * rows), dpi=dpi, layout="constrained", facecolor="white")
    colours = _colours(boards)
    for index, board in enumerate(boards):
        _draw_board(figure.add_subplot(rows, columns, index + 1), board, colours)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None, "Title": "Score against output length"})
    return file.getvalue()


def _colours(boards: Sequence[Board]) -> dict[str, str]:
    """One colour per label over all panels."""
    labels = list(dict.fromkeys(row.label for board in boards for row in board.rows))
    return {label: _COLOURS[index % len(_COLOURS)] for index, label in enumerate(labels)}


def _draw_board(axes: Axes, board: Board, colours: dict[str, str]) -> None:
    points: list[float] = []
    for row in board.rows:
        summaries = [
            row.cells[column.column_id].summary
            for column in board.columns
            if column.column_id in row.cells and row.cells[column.column_id].summary.is_complete
        ]
        points += _draw_row(axes, row, summaries, colours[row.label])
    axes.set_title(board.title, fontsize=11.5, fontweight="bold", color=_INK, loc="left", pad=10, wrap=True)
    axes.set_xlabel("mean output length: characters of thinking and answer", color=_INK)
    axes.set_ylabel("score (%)", color=_INK)
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors=_INK, labelsize=9)
    _scale_length_axis(axes, points)
    if points:
        _draw_legend(axes, board, colours)
    else:
        axes.text(0.5, 0.5, "no finished evaluation", transform=axes.transAxes, ha="center", va="center", color="#777777")


def _draw_row(axes: Axes, row: Row, summaries: Sequence[Summary], colour: str) -> list[float]:
    """Draw one run; returns its lengths."""
    lengths: list[float] = []
    scores: list[float] = []
    for summary in summaries:
        length, score = summary.lengths["total_chars"]["all"], summary.score
        assert length is not None
        assert score is not None
        is_high = summary.evaluation.mode == "high"
        lengths.append(length.mean)
        scores.append(100 * score.value)
        axes.errorbar(
            length.mean,
            100 * score.value,
            xerr=[[length.mean - length.mean_low], [length.mean_high - length.mean]],
            yerr=[[100 * (score.value - score.low)], [100 * (score.high - score.value)]],
            fmt="o",
            markersize=8,
            markeredgewidth=1.8,
            markeredgecolor=colour,
            markerfacecolor=colour if is_high else "white",
            ecolor=colour,
            elinewidth=1.2,
            capsize=3,
            zorder=3,
        )
    if len(summaries) == 2:
        axes.plot(lengths, scores, color=colour, linewidth=1.4, alpha=0.55, zorder=2)
    return lengths


def _scale_length_axis(axes: Axes, lengths: Sequence[float]) -> None:
    """A logarithmic axis when the longest output is five times the shortest or more, and room on both sides."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    positive = [length for length in lengths if length > 0]
    if len(positive) == len(lengths) and positive and max(positive) / min(positive) >= 5:
        axes.set_xscale("log")
        axes.set_xlim(min(positive) / 1.6, max(positive) * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif positive:
        axes.set_xlim(0, max(positive) * 1.2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_legend(axes: Axes, board: Board, colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, colour: str, face: str, width: float) -> Line2D:
        return Line2D([], [], color=colour, marker="o", markerfacecolor=face, markeredgecolor=colour, linewidth=width, label=label)

    handles = [mark(_shortened(row.label), colours[row.label], colours[row.label], 1.4) for row in board.rows]
    handles += [mark("none: answers directly", "#777777", "white", 0), mark("high: thinks first", "#777777", "#777777", 0)]
    axes.legend(handles=handles, fontsize=8.5, frameon=True, framealpha=0.9, edgecolor=_FAINT, labelcolor=_INK, loc="best")


def _shortened(label: str) -> str:
    # A dollar sign would start a formula, and a leading underscore hides a legend entry.
    plain = label.replace("$", "\\$")
    plain = f" {plain}" if plain.startswith("_") else plain
    return plain if len(plain) <= _MAX_LEGEND_CHARACTERS else plain[: _MAX_LEGEND_CHARACTERS - 3] + "..."
