"""Packing: nothing lost, nothing too long, rows nearly full, state restorable."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms4_train.data.packing import Packer

LENGTHS = st.lists(st.integers(1, 50), max_size=120)


class Item:
    """An item with an identity."""

    def __init__(self, number: int, length: int) -> None:
        self.number, self.length = number, length

    def __len__(self) -> int:
        return self.length


def pack(items: list[Item], packer: Packer[Item]) -> list[list[Item]]:
    return [row for item in items for row in packer.push(item)] + packer.flush()


@given(LENGTHS, st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_every_item_is_in_one_row_and_no_row_is_too_long(lengths: list[int], max_open: int) -> None:
    items = [Item(number, length) for number, length in enumerate(lengths)]
    packer: Packer[Item] = Packer(50, max_open)
    rows = pack(items, packer)
    assert sorted(item.number for row in rows for item in row) == list(range(len(items)))
    assert all(0 < sum(map(len, row)) <= 50 for row in rows)
    assert packer.open_rows == []


@given(LENGTHS, st.integers(1, 8), st.data())
@settings(max_examples=100, deadline=None)
def test_a_restored_packer_goes_on_as_the_first_would_have(lengths: list[int], max_open: int, data: st.DataObject) -> None:
    items = [Item(number, length) for number, length in enumerate(lengths)]
    cut = data.draw(st.integers(0, len(items)))
    first: Packer[Item] = Packer(50, max_open)
    for item in items[:cut]:
        first.push(item)
    second: Packer[Item] = Packer(50, max_open)
    second.restore(first.open_rows)
    assert numbers(pack(items[cut:], second)) == numbers(pack(items[cut:], first))


def numbers(rows: list[list[Item]]) -> list[list[int]]:
    return [[item.number for item in row] for row in rows]


def test_one_open_row_packs_in_order() -> None:
    rows = pack([Item(number, length) for number, length in enumerate([20, 20, 30, 10, 50, 1])], Packer(50, 1))
    assert numbers(rows) == [[0, 1], [2, 3], [4], [5]]


def test_rows_are_nearly_full() -> None:
    # Lengths of a typical chat set against a row of 2048. In order, a row ends where the next document does not fit.
    lengths = [1 + (number * 7919) % 900 for number in range(3000)]
    items = [Item(number, length) for number, length in enumerate(lengths)]
    share = {max_open: sum(lengths) / (2048 * len(pack(items, Packer(2048, max_open)))) for max_open in (1, 8)}
    assert share[8] > 0.97
    assert share[1] < 0.9


def test_items_that_cannot_fit_are_a_defect_of_the_caller() -> None:
    for length in (0, 51):
        with pytest.raises(AssertionError):
            Packer(50).push(Item(0, length))
