"""Which tile is chosen where."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.moe.triton.tiles import block_rows, dh_tile, gram_tile, grouped_tile, low_rank_tile, padded_rank, stages_that_fit, up_tile

CHOOSERS = (up_tile, grouped_tile, dh_tile)


@pytest.mark.parametrize(("rows", "height"), [(0, 16), (15.9, 16), (16, 32), (47, 32), (48, 64), (255, 64), (256, 128), (1e6, 128)])
def test_height_by_rows_per_expert(rows, height):
    assert block_rows(rows) == height
    assert {chooser(rows, torch.bfloat16).block_m for chooser in CHOOSERS} == {height}


@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("kind", ["dense", "fp8", "nvfp4"])
def test_one_side_of_every_tile_fills_the_tensor_cores(chooser, kind):
    for rows in (1, 16, 48, 256, 1024):
        tile = chooser(rows, torch.bfloat16, kind)
        assert (tile.block_n if tile.swap else tile.block_m) >= 64
        assert tile.block_n % tile.split == 0
        assert tile.block_n % 16 == tile.block_k % 16 == 0  # NVFP4 scales 16 columns, whichever way round the matrix is read


def test_large_tiles_from_256_rows():
    assert all(chooser(256, torch.bfloat16).block_m >= 128 for chooser in CHOOSERS)
    assert 2 * up_tile(256, torch.bfloat16).block_n >= 128
    assert min(grouped_tile(256, torch.bfloat16).block_n, dh_tile(256, torch.bfloat16).block_n) >= 128


@pytest.mark.parametrize(("rank", "padded"), [(1, 16), (8, 16), (16, 16), (17, 32), (24, 32), (64, 64), (128, 128)])
def test_rank_is_padded_to_a_power_of_two(rank, padded):
    assert padded_rank(rank) == padded
    assert low_rank_tile(1, torch.bfloat16, rank).block_n == padded
    assert low_rank_tile(1, torch.bfloat16, rank).block_m == 64


def test_gram_tile_is_as_narrow_as_the_rank():
    assert (gram_tile(torch.bfloat16, 4096, 8).block_m, gram_tile(torch.bfloat16, 4096, 8).block_n) == (128, 16)
    assert gram_tile(torch.bfloat16, 4096, 2048).block_n == 128


def test_fp32_takes_small_tiles():
    tiles = [chooser(1000, torch.float32) for chooser in CHOOSERS]
    tiles += [low_rank_tile(1000, torch.float32, 128), gram_tile(torch.float32, 4096, 4096)]
    assert max(tile.block_m * tile.block_n for tile in tiles) <= 32 * 32


def test_fewer_loads_in_flight_where_shared_memory_is_small():
    tile = up_tile(1024, torch.bfloat16)
    stage = (128 + 256) * 64 * 2
    assert stages_that_fit(tile, 2 * tile.block_n, 2, 227 * 1024) == tile.num_stages
    assert stages_that_fit(tile, 2 * tile.block_n, 2, 99 * 1024) == 2  # a GeForce
    assert 2 * stage <= 99 * 1024 < 3 * stage
    assert stages_that_fit(tile, 2 * tile.block_n, 2, 1) == 1
