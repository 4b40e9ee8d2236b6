"""The plot: a real image with a point per finished evaluation, read back from matplotlib's own objects."""

import dataclasses
import io
import struct

import pytest
from matplotlib.figure import Figure
from PIL import Image

from ms4_evals.leaderboard import plot
from ms4_evals.leaderboard.plot import make_styles, plot_png
from ms4_evals.statistics.scores import Score, wilson_interval


def axes_of(board, styles):
    axes = Figure().add_subplot()
    plot._draw_board(axes, board, styles)
    return axes


def test_it_is_a_png_of_a_legible_size(boards):
    data = plot_png(boards)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 1800
    assert height >= 700
    image = Image.open(io.BytesIO(data)).convert("RGB")
    colours = {colour for _, colour in image.getcolors(1 << 24) or []}
    assert (0x00, 0x72, 0xB2) in colours, "the first run's colour is there"


def test_the_same_boards_give_the_same_bytes(boards):
    assert plot_png(boards) == plot_png(boards)


def test_points_lie_at_length_and_score_and_modes_are_joined(boards):
    board = boards[0]
    axes = axes_of(board, make_styles(boards))
    found = {(round(line.get_xdata()[0], 6), round(line.get_ydata()[0], 6)) for line in axes.lines if line.get_marker() in plot._SHAPES}
    expected = set()
    for row in board.rows:
        for cell in row.cells.values():
            length, score = cell.summary.lengths["total_chars"]["all"], cell.summary.score
            expected.add((round(length.mean, 6), round(100 * score.value, 6)))
    assert found == expected
    joined = [line for line in axes.lines if line.get_marker() == "None" and len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert len(joined) == len(board.rows)


def test_none_is_hollow_and_high_is_filled(boards):
    axes = axes_of(boards[0], make_styles(boards))
    faces = {line.get_markerfacecolor() for line in axes.lines if line.get_marker() in plot._SHAPES}
    assert "white" in faces
    assert len(faces) > 1


def test_unfinished_evaluations_have_no_point(boards):
    letters = boards[1]
    styles = make_styles(boards)
    unfinished = [row for row in letters.rows if row.difference is None]
    axes = axes_of(letters, styles)
    colours = {line.get_markeredgecolor() for line in axes.lines if line.get_marker() in plot._SHAPES}
    assert styles[unfinished[0].label].colour not in colours


def test_thirty_five_runs_look_different():
    boards = [type("B", (), {"rows": [type("R", (), {"label": str(number)}) for number in range(35)]})]
    styles = make_styles(boards)  # pyright: ignore[reportArgumentType]
    assert len(set(styles.values())) == 35


@pytest.mark.parametrize("label", ["$x$", "_hidden", "a" * 500, "\N{SNOWMAN}", "$unbalanced", ""])
def test_any_label_can_be_drawn(boards, label):
    board = boards[0]
    rows = (dataclasses.replace(board.rows[0], label=label),)
    assert plot_png([dataclasses.replace(board, rows=rows)], dpi=40)


def test_a_bound_that_rounding_put_on_the_wrong_side_is_drawn(boards):
    low, high = wilson_interval(0.0, 13.0, 0.95)
    row = boards[0].rows[0]
    cells = {key: dataclasses.replace(cell, headline=Score(0.0, 0.0, None, max(low, 1e-15), high)) for key, cell in row.cells.items()}
    assert plot_png([dataclasses.replace(boards[0], rows=(dataclasses.replace(row, cells=cells),))], dpi=40)


@pytest.mark.parametrize(("lengths", "scale"), [([10.0, 60.0], "log"), ([10.0, 40.0], "linear"), ([0.0, 60.0], "linear"), ([], "linear")])
def test_the_length_axis(lengths, scale):
    axes = Figure().add_subplot()
    plot._scale_length_axis(axes, lengths)
    assert axes.get_xscale() == scale
