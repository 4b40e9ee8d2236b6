"""Tiles against a loop over the experts, and against the bound on their number."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ms4_kernels.routing.tile_list import num_tiles, tile_list

COUNTS = [[], [0], [1], [0, 0, 5], [64, 64], [63, 1, 65, 0, 128], [1] * 20, [1000, 0, 0], [0] * 7, [0, 130], [3, 0] * 30]
BLOCKS = [1, 16, 64]


def expected_tiles(counts: list[int], block_rows: int) -> list[tuple[int, int, int]]:
    """(expert, start, stop) of each tile, by a loop."""
    tiles = []
    for expert, (start, stop) in enumerate(itertools.pairwise(itertools.accumulate(counts, initial=0))):
        tiles += [(expert, row, min(row + block_rows, stop)) for row in range(start, stop, block_rows)]
    return tiles


def check(counts: list[int], block_rows: int, rows_behind: int = 0) -> None:
    """Compare with the loop; every surplus entry is empty. Runs whatever backend is at hand."""
    ends_e = torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    num_rows = sum(counts) + rows_behind
    tiles = tile_list(ends_e, num_rows, block_rows)
    expected = expected_tiles(counts, block_rows)
    found = list(zip(*(column.tolist() for column in tiles), strict=True))
    assert all(column.dtype == torch.int32 for column in tiles)
    assert len(found) == num_tiles(len(counts), num_rows, block_rows) == num_rows // block_rows + min(len(counts), num_rows)
    assert found == expected + [(0, 0, 0)] * (len(found) - len(expected))


@pytest.mark.parametrize("block_rows", BLOCKS)
@pytest.mark.parametrize("counts", COUNTS)
def test_tiles_equal_a_loop(counts, block_rows):
    check(counts, block_rows)


def test_rows_behind_the_last_expert_get_no_tile():
    check([5, 0, 70], 16, rows_behind=40)


@given(st.lists(st.one_of(st.just(0), st.integers(0, 200)), max_size=40), st.integers(1, 130))
@settings(max_examples=150, deadline=None)
def test_tiles_equal_a_loop_whatever_the_counts(counts, block_rows):
    check(counts, block_rows)


@given(st.integers(1, 64), st.integers(0, 500), st.integers(1, 130))
@settings(max_examples=150, deadline=None)
def test_the_bound_is_never_short_and_almost_reached(experts, rows, block_rows):
    """The worst routing gives one row to all experts but one, and the rest to that one."""
    with_rows = min(experts, rows)
    worst = len(expected_tiles([1] * (with_rows - 1) + [rows - with_rows + 1], block_rows)) if rows else 0
    assert 0 <= num_tiles(experts, rows, block_rows) - worst <= with_rows // block_rows + 1


def test_what_is_no_tile_list_is_refused():
    with pytest.raises(ValueError, match="positive"):
        tile_list(torch.tensor([3], dtype=torch.int32), 3, 0)
    with pytest.raises(ValueError, match="int32"):
        tile_list(torch.tensor([3]), 3, 16)
