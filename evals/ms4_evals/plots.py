"""A report's plots: scores with intervals, lengths of right and wrong answers, and the score by month where problems have one.

Each is a function of the report alone, and the same bytes for the same report and the same matplotlib.
Exercise it: ``pytest tests/evals/ms4_evals/test_plots.py``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ms4_evals.outside_text import one_line
from ms4_evals.statistics.breakdowns import OUTPUT_TOKENS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by the colour-blind too.
_COLOURS = {"none": "#E69F00", "high": "#0072B2"}
_RIGHT, _WRONG = "#009E73", "#D55E00"
_INK, _FAINT = "#222222", "#d9d9d9"
_MOST_TITLE_CHARACTERS = 48


def report_plots(report: dict[str, Any], *, dpi: int = 150) -> dict[str, bytes]:
    """PNG images by name: ``scores``, ``lengths``, ``months``; each only where the report has something to show.

    Args:
        report: from ``build_report``.
        dpi: dots per inch.
    """
    drawn = {"scores": _scores(report), "lengths": _lengths(report), "months": _months(report)}
    return {name: _png(figure, dpi) for name, figure in drawn.items() if figure is not None}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _png(figure: Figure, dpi: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def _scores(report: dict[str, Any]) -> Figure | None:
    """One row per task, one bar per mode, from the top in the order of the report."""
    tasks = [(task, [mode for mode in task["modes"] if mode["score"]]) for task in report["tasks"]]
    tasks = [(task, modes) for task, modes in tasks if modes]
    if not tasks:
        return None
    bars = sum(len(modes) for _, modes in tasks)
    figure = _figure(7.2, 1.2 + 0.34 * bars + 0.25 * len(tasks))
    axes = figure.add_subplot()
    place, ticks = 0.0, []
    for task, modes in tasks:
        start = place
        for mode in modes:
            _score_bar(axes, place, mode)
            place += 1.0
        ticks.append((start + (len(modes) - 1) / 2, _shortened(task["title"])))
        place += 0.6
    axes.set_yticks([position for position, _ in ticks], [text for _, text in ticks], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    note = "" if all(mode["complete"] for _, modes in tasks for mode in modes) else "; * samples are left out"
    axes.set_xlabel(f"score (%), bars: {100 * report['confidence']:g} % intervals{note}", color=_INK)
    _style(axes, "x")
    _mode_legend(figure, {mode["mode"] for _, modes in tasks for mode in modes})
    return figure


def _score_bar(axes: Axes, place: float, mode: dict[str, Any]) -> None:
    score = mode["score"]
    value, low, high = (100 * score[name] for name in ("value", "low", "high"))
    axes.barh(place, value, height=0.8, color=_COLOURS[mode["mode"]], alpha=0.75)
    axes.errorbar(value, place, xerr=[[value - low], [high - value]], color=_INK, capsize=3, linewidth=1.2)
    star = "" if mode["complete"] else "*"
    axes.text(high + 1.5, place, f"{value:.1f}{star}", va="center", fontsize=9, color=_INK)


def _lengths(report: dict[str, Any]) -> Figure | None:
    """One panel per task and mode: samples by output length, the right ones on the wrong ones."""
    panels = [
        (task, mode, mode["breakdowns"][OUTPUT_TOKENS])
        for task in report["tasks"]
        for mode in task["modes"]
        if OUTPUT_TOKENS in mode["breakdowns"]
    ]
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(4.6 * columns, 0.4 + 2.7 * rows)
    for index, (task, mode, parts) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        places = range(len(parts))
        right = [part["correct"] for part in parts]
        wrong = [part["samples"] - part["correct"] for part in parts]
        axes.bar(places, right, color=_RIGHT, label="correct")
        axes.bar(places, wrong, bottom=right, color=_WRONG, label="not correct")
        axes.set_xticks(list(places), [_band(part["value"]) for part in parts], rotation=45, ha="right", fontsize=8)
        axes.set_title(f"{_shortened(task['title'])}, {mode['mode']}", fontsize=9.5, loc="left", color=_INK, parse_math=False)
        axes.set_ylabel("samples", color=_INK)
        _style(axes, "y")
        if index == 0:
            axes.legend(fontsize=8, frameon=False)
    figure.supxlabel("tokens of thinking and answer, from ...", fontsize=9.5, color=_INK)
    return figure


def _months(report: dict[str, Any]) -> Figure | None:
    """Score by month of the problems: a fall after some month is what contamination looks like."""
    tasks = [task for task in report["tasks"] if any("month" in mode["breakdowns"] for mode in task["modes"])]
    if not tasks:
        return None
    figure = _figure(8.0, 3.4 * len(tasks))
    for index, task in enumerate(tasks):
        axes = figure.add_subplot(len(tasks), 1, index + 1)
        modes = [mode for mode in task["modes"] if "month" in mode["breakdowns"]]
        months = sorted({part["value"] for mode in modes for part in mode["breakdowns"]["month"]})
        for number, mode in enumerate(modes):
            _month_line(axes, months, mode, shift=0.12 * (number - (len(modes) - 1) / 2))
        axes.set_xticks(range(len(months)), [_shortened(month) for month in months], rotation=45, ha="right", fontsize=8, parse_math=False)
        axes.set_ylim(-3, 103)
        axes.set_ylabel("score (%)", color=_INK)
        axes.set_title(_shortened(task["title"]), fontsize=10, loc="left", color=_INK, parse_math=False)
        _style(axes, "y")
    _mode_legend(figure, {mode["mode"] for task in tasks for mode in task["modes"]})
    return figure


def _month_line(axes: Axes, months: Sequence[str], mode: dict[str, Any], *, shift: float) -> None:
    parts = mode["breakdowns"]["month"]
    places = [months.index(part["value"]) + shift for part in parts]
    values = [100 * part["score"]["value"] for part in parts]
    below = [100 * (part["score"]["value"] - part["score"]["low"]) for part in parts]
    above = [100 * (part["score"]["high"] - part["score"]["value"]) for part in parts]
    colour = _COLOURS[mode["mode"]]
    axes.errorbar(places, values, yerr=[below, above], fmt="o-", color=colour, capsize=3, markersize=5, linewidth=1.2)


def _style(axes: Axes, grid: str) -> None:
    axes.grid(axis="x" if grid == "x" else "y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)


def _mode_legend(figure: Figure, modes: set[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=mode) for mode, colour in _COLOURS.items() if mode in modes]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), fontsize=9, frameon=False)


def _band(text: str) -> str:
    """The start of a band, short: ``16k`` of ``16,384 to 32,767``."""
    start = int(text.split(" ")[0].replace(",", ""))
    return f"{start // 1024}k" if start >= 1024 else str(start)


def _shortened(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _MOST_TITLE_CHARACTERS else line[: _MOST_TITLE_CHARACTERS - 3] + "..."
