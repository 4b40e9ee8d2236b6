"""The held-out share is stable and does not leak."""

from __future__ import annotations

import pytest
from support.rows import arithmetic_rows, chat

from ms4_train.chat import read_row
from ms4_train.data.split import is_held_out

ROWS = [read_row(row) for row in arithmetic_rows(2000)]


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_the_share_is_the_one_asked_for(fraction: float) -> None:
    share = sum(is_held_out(row, fraction) for row in ROWS) / len(ROWS)
    # Five standard deviations of a binomial share over 2000 rows; the rows are fixed, so this either holds always or never.
    assert abs(share - fraction) < 5 * (fraction * (1 - fraction) / len(ROWS)) ** 0.5


def test_nothing_and_everything() -> None:
    assert not any(is_held_out(row, 0.0) for row in ROWS)
    assert all(is_held_out(row, 1.0) for row in ROWS)


def test_a_larger_share_keeps_what_a_smaller_one_held_out() -> None:
    assert all(is_held_out(row, 0.3) for row in ROWS if is_held_out(row, 0.1))


def test_both_modes_of_a_question_are_on_one_side() -> None:
    for number in range(50):
        direct = read_row(chat(f"q{number}", "a"))
        thoughtful = read_row(chat(f"q{number}", "another", thinking="t", system="s"))
        assert is_held_out(direct, 0.5) == is_held_out(thoughtful, 0.5)


def test_the_split_of_known_rows_never_changes() -> None:
    # A change here moves validation rows of existing runs into training.
    assert [number for number in range(40) if is_held_out(read_row(chat(f"q{number}", "a")), 0.1)] == HELD_OUT


HELD_OUT = [8, 9, 13, 20, 21, 24]


def test_the_images_of_a_row_belong_to_its_question() -> None:
    row = read_row(chat("what is this?", "a"))
    sides = [is_held_out(row, 0.5, [f"{number:032x}"]) for number in range(200)]
    assert 70 < sum(sides) < 130
    assert len({is_held_out(row, 0.5) for _ in range(3)}) == 1
