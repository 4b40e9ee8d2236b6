"""The report's sizes use the launcher's tiles, and count what the release does."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from ms4_kernels.moe.triton import tiles
from ms4_kernels.report import gates
from ms4_kernels.report.release import TOKENS, choosers, moved_and_minimum, traffic_rows

BF16 = torch.bfloat16


def test_choosers_are_the_launchers():
    found = choosers()
    for rows in (1, 16, 64, 256, 1024):
        assert found["up"](rows) == tiles.up_tile(rows, BF16).block_m
        assert found["grouped"](rows) == tiles.grouped_tile(rows, BF16).block_m
        assert found["dh"](rows) == tiles.dh_tile(rows, BF16).block_m
        assert found["low rank"](rows) == tiles.low_rank_tile(rows, BF16, 16).block_m


def test_rows():
    rows = traffic_rows()
    assert {row.tokens for row in rows} == set(TOKENS)
    assert {row.weights for row in rows} == {"bf16", "fp8", "nvfp4"}
    up = {(row.tokens, row.weights): row for row in rows if row.operation == "up"}
    # 4 E d n bytes of bf16 weights are 4 GiB; FP8 halves them, NVFP4 has 9 bits for 32.
    assert up[512, "bf16"].minimum - up[512, "fp8"].minimum == 2**31
    assert up[512, "bf16"].minimum - up[512, "nvfp4"].minimum == 2**32 * (1 - 9 / 32)
    # 2 * R * d * 2n.
    assert up[2048, "bf16"].flops == 2 * 8192 * 4096 * 4096
    for row in rows:
        assert row.moved >= row.minimum > 0, row
        if row.issued:
            # The tile list has room for more tiles than any routing fills, so that this is an upper bound.
            assert row.issued > 0.9 * 2 * row.flops / 2 / 256 / 4, row


def test_the_sum_of_ds_counts_with_the_kernel_that_splits_it():
    rows = traffic_rows()
    moved, minimum = moved_and_minimum(rows)
    assert gates.traffic(moved, minimum) == []
    assert sum(moved.values()) == sum(row.moved for row in rows)
    assert not any(name.startswith("ds") for name in moved)
    alone = [row for row in rows if row.operation == "ds"]
    assert all(row.moved > 1.1 * row.minimum for row in alone), "by itself it would break the gate"


def test_what_goes_through_the_cache_follows_the_tiles():
    """At 1024 rows an expert the up kernel's tile of 128 rows asks for each weight 8 times, and once more for a ragged end."""
    (row,) = [row for row in traffic_rows() if (row.tokens, row.weights, row.operation) == (32768, "bf16", "up")]
    tile = tiles.up_tile(1024, BF16)
    weights = 4 * 128 * 4096 * 2048
    rows = 2 * 32768 * 4 * 4096
    asked = weights * (1024 / tile.block_m + 1) + rows * (2048 / tile.block_n) * (1 + tile.block_m / 1024)
    assert row.issued == pytest.approx(asked)
