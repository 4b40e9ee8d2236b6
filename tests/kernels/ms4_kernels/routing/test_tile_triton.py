"""The tile kernel in the interpreter: against plain torch, on the cases of a loop; planted bugs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support.mutations import plant
from support.triton_interpreter import OutOfBoundsError, RaceError, interpreted

from ms4_kernels.routing import tile_list, tile_triton

COUNTS = [
    [0], [1], [0, 0, 5], [64, 64], [63, 1, 65, 0, 128], [1] * 20, [1000, 0, 0], [0] * 7, [0, 130], [3, 0] * 30, [0] * 127 + [4000],
    [17] * 300,
]  # fmt: skip


def _equals_torch(counts: list[int], block_rows: int, rows_behind: int = 0) -> bool:
    ends_e = torch.tensor(counts).cumsum(0).to(torch.int32)
    num_rows = sum(counts) + rows_behind
    with interpreted():
        mine = tile_list(ends_e, num_rows, block_rows)
    oracle = tile_list(ends_e, num_rows, block_rows, backend="cpu")
    return all(left.dtype == right.dtype and torch.equal(left, right) for left, right in zip(mine, oracle, strict=True))


@pytest.mark.parametrize("block_rows", [16, 64])
@pytest.mark.parametrize("counts", COUNTS)
def test_tiles_equal_those_of_torch(counts, block_rows):
    assert _equals_torch(counts, block_rows)


def test_rows_behind_the_last_expert_get_no_tile():
    assert _equals_torch([5, 0, 70], 16, rows_behind=40)


def test_no_expert_launches_nothing():
    with interpreted() as launches:
        assert tile_list(torch.zeros(0, dtype=torch.int32), 0, 16).expert_m.numel() == 0
    assert not launches


BUGS = {
    "a tile that is not full is dropped": ("(rows_e + block_rows - 1) // block_rows", "rows_e // block_rows"),
    "the tile after an expert's last is its own": ("tile_ends_e[None, :] <= tile_m", "tile_ends_e[None, :] < tile_m"),
    "tiles span experts": ("tl.minimum(start_m + block_rows, tl.load(", "tl.maximum(start_m + block_rows, tl.load("),
    "ends before the first": ("mask=is_expert_e & (expert_e > 0)", "mask=is_expert_e"),
    "entries past the end": ("is_entry_m = tile_m < num_tiles", "is_entry_m = tile_m >= 0"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug, monkeypatch, tmp_path: Path):
    """By wrong tiles, or by the interpreter's check of bounds."""

    def is_accepted() -> bool:
        return all(_equals_torch(counts, 16) for counts in ([63, 1, 65, 0, 128], [0, 0, 5]))

    assert is_accepted()
    plant(monkeypatch, tmp_path, tile_triton, *BUGS[bug])
    with suppress(OutOfBoundsError, RaceError):
        assert not is_accepted()
