"""The plot: score against length of the output, one panel per board, both modes of a run joined by a line.

Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_plot.py``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ms4_evals.leaderboard.collect import Board, Cell, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too pale for a line: told apart by the colour-blind too. The number of shapes has no
# factor in common with the number of colours, so 35 runs look different.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_SHAPES = ("o", "s", "D", "^", "v")
_INK = "#222222"
_FAINT = "#d9d9d9"
_GREY = "#777777"
_MAX_LEGEND_CHARACTERS = 60
_PANEL_INCHES = (6.9, 4.6)
_LEGEND_LINE_INCHES = 0.24


@dataclass(frozen=True)
class Style:
    """How a run is drawn."""

    colour: str
    shape: str


def plot_png(boards: Sequence[Board], *, dpi: int = 160) -> bytes:
    """A PNG image of all boards.

    Points lie at mean characters of output (thinking and answer) and score; bars are 95 % intervals. Hollow is ``none``, filled is
    ``high``. Unfinished evaluations are left out, and a panel without points says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(2, len(boards))
    rows = -(-len(boards) // columns)
    styles = make_styles(boards)
    legend_lines = 2 + -(-len(styles) // columns)
    size = (_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows + _LEGEND_LINE_INCHES * legend_lines)
    figure = Figure(figsize=size, dpi=dpi, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1), facecolor="white")
    for index, board in enumerate(boards):
        _draw_board(figure.add_subplot(rows, columns, index + 1), board, styles)
    _draw_legend(figure, styles, columns)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None, "Title": "Score against output length"})
    return file.getvalue()


def make_styles(boards: Sequence[Board]) -> dict[str, Style]:
    """One style per label, the same in every panel."""
    labels = list(dict.fromkeys(row.label for board in boards for row in board.rows))
    return {label: Style(_COLOURS[index % len(_COLOURS)], _SHAPES[index % len(_SHAPES)]) for index, label in enumerate(labels)}


def _draw_board(axes: Axes, board: Board, styles: dict[str, Style]) -> None:
    lengths: list[float] = []
    for row in board.rows:
        cells = [row.cells[column.column_id] for column in board.columns if column.column_id in row.cells]
        lengths += _draw_row(axes, row, [cell for cell in cells if cell.headline is not None], styles[row.label])
    axes.set_title(board.title, fontsize=11.5, fontweight="bold", color=_INK, loc="left", pad=10, wrap=True, parse_math=False)
    axes.set_xlabel("mean output length: characters of thinking and answer", color=_INK)
    axes.set_ylabel("score (%)", color=_INK)
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors=_INK, labelsize=9)
    _scale_length_axis(axes, lengths)
    if not lengths:
        axes.text(0.5, 0.5, "no finished evaluation", transform=axes.transAxes, ha="center", va="center", color=_GREY)


def _draw_row(axes: Axes, row: Row, cells: Sequence[Cell], style: Style) -> list[float]:
    """Draw one run; returns its lengths."""
    lengths: list[float] = []
    scores: list[float] = []
    for cell in cells:
        length, score = cell.summary.lengths["total_chars"]["all"], cell.headline
        assert length is not None
        assert score is not None
        lengths.append(length.mean)
        scores.append(100 * score.value)
        axes.errorbar(
            length.mean,
            100 * score.value,
            xerr=_reach(length.mean, length.mean_low, length.mean_high),
            yerr=_reach(100 * score.value, 100 * score.low, 100 * score.high),
            fmt=style.shape,
            markersize=8,
            markeredgewidth=1.8,
            markeredgecolor=style.colour,
            markerfacecolor=style.colour if cell.summary.evaluation.mode == "high" else "white",
            ecolor=style.colour,
            elinewidth=1.2,
            capsize=3,
            zorder=3,
        )
    if row.difference is not None:  # this run has exactly one complete column of each mode
        axes.plot(lengths, scores, color=style.colour, linewidth=1.4, alpha=0.55, zorder=2)
    return lengths


def _reach(value: float, low: float, high: float) -> list[list[float]]:
    """Both arms of an error bar; rounding may put a bound a hair on the wrong side of its value (0 of 13 correct)."""
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


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


def _draw_legend(figure: Figure, styles: dict[str, Style], columns: int) -> None:
    """Below the panels, where it covers no point: the runs, then the two modes."""
    from matplotlib.lines import Line2D

    def mark(label: str, colour: str, shape: str, face: str, width: float) -> Line2D:
        return Line2D([], [], color=colour, marker=shape, markerfacecolor=face, markeredgecolor=colour, linewidth=width, label=label)

    runs = [mark(_shortened(label), style.colour, style.shape, style.colour, 1.4) for label, style in styles.items()]
    modes = [
        mark("hollow: none, answers directly", _GREY, "o", "white", 0),
        mark("filled: high, thinks first; bars: 95 % intervals", _GREY, "o", _GREY, 0),
    ]
    figure.legend(handles=[*runs, *modes], loc="outside lower center", ncols=columns, fontsize=9, frameon=False, labelcolor=_INK)


def _shortened(label: str) -> str:
    # A dollar sign would start a formula, and a leading underscore hides a legend entry.
    short = label if len(label) <= _MAX_LEGEND_CHARACTERS else label[: _MAX_LEGEND_CHARACTERS - 3] + "..."
    return (" " if short.startswith("_") else "") + short.replace("$", "\\$")
