"""The launcher: what it launches, over how many programs, and with which masks dropped."""

from __future__ import annotations

import pytest
import torch
from support.experts_cases import poisoned
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton import launch
from ms4_kernels.moe.triton.operands import Rows, Stack
from ms4_kernels.moe.triton.tiles import Tile
from ms4_kernels.routing import sort_by_expert


@pytest.mark.parametrize(("columns", "inner", "even"), [(64, 128, (True, True)), (72, 128, (False, True)), (64, 100, (True, False))])
def test_masks_are_dropped_where_the_tile_divides(columns, inner, even):
    constants = launch.product_constants(Tile(64, 32, 64, 4, 3), columns, inner, 0, 1, torch.bfloat16)
    assert (constants["EVEN_N"], constants["EVEN_K"]) == even


def test_programs_are_bounded_without_looking_at_the_routing(ragged):
    with interpreted() as launches:
        launch.grouped(torch.randn(94, 64), Stack.of(torch.randn(5, 40, 64)), ragged, k_inner=True)
    tiles, columns = 94 // 32 + 5, 2  # fp32: 32 rows by 32 columns
    assert [record.programs for record in launches if record.kernel == "grouped_kernel"] == [tiles * columns]


def test_no_rows_launch_nothing():
    rows = Rows(sort_by_expert(torch.empty(0, 2, dtype=torch.int64), 4, backend="reference"), 2)
    with interpreted() as launches:
        h_ri, act_rn = launch.up(torch.empty(0, 64), Stack.of(torch.randn(4, 32, 64)), rows)
    assert not launches
    assert h_ri is not None
    assert act_rn is not None
    assert (h_ri.shape, act_rn.shape) == ((0, 32), (0, 16))


def test_a_tile_list_that_misses_rows_is_noticed(ragged):
    """Negative control: without its first tile a product leaves rows unwritten, which shows in poisoned memory."""
    stack, rows_rk = Stack.of(torch.randn(5, 40, 64)), torch.randn(94, 64)
    with interpreted():
        whole = launch.grouped(rows_rk, stack, ragged, k_inner=True)
        tiles, broken = ragged.tiles(32), Rows(ragged.order, 2)
        broken._tiles[32] = tiles._replace(stop_m=tiles.stop_m.where(tiles.start_m != 0, 0))
        with poisoned():
            part = launch.grouped(rows_rk, stack, broken, k_inner=True)
    first = int(tiles.stop_m[0])
    assert part[:first].isnan().all()
    assert torch.equal(part[first:], whole[first:])
