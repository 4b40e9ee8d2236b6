"""The table on a terminal: the numbers of the boards, within 100 characters, and nobody's markup."""

import dataclasses
import io

from rich.console import Console

from ms4_evals.leaderboard.table import board_table, difference_text, length_text, score_text


def printed(board, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(board_table(board))
    return console.file.getvalue()


def test_scores_lengths_and_identities_are_shown(boards):
    digits = boards[0]
    text = printed(digits)
    assert digits.title in text
    assert digits.board_id[:12] in text
    for column in digits.columns:
        assert column.column_id[:12] in text
    for row in digits.rows:
        assert difference_text(row) in text
        for cell in row.cells.values():
            assert score_text(cell) in text


def test_an_unfinished_cell_shows_no_score(boards):
    text = printed(boards[1])
    assert "unfinished" in text
    assert "errors" in text


def test_a_label_is_text_and_not_markup(boards):
    text = printed(boards[0], width=160)
    assert "[red]" in text
    assert "<script>" in text


def test_it_fits_a_hundred_characters_without_cutting_a_number(boards):
    text = printed(boards[0])
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_lengths():
    assert [length_text(value) for value in (None, 0.04, 99.94, 100.0, 12345.6)] == ["-", "0.0", "99.9", "100", "12,346"]


def test_a_cell_says_what_it_is_marked_with(boards):
    board = boards[0]
    row = board.rows[0]
    cells = {key: dataclasses.replace(cell, marks=("no sandbox", "errors left out")) for key, cell in row.cells.items()}
    text = printed(dataclasses.replace(board, rows=(dataclasses.replace(row, cells=cells),)))
    assert text.count("no sandbox") == text.count("errors left out") == len(cells)
