"""The cache's size: bounded by what is asked for, needed and free; what cannot work is refused with the numbers."""

from __future__ import annotations

import pytest
import torch

from ms4_train.errors import EngineError
from ms4_train.inference import memory
from ms4_train.inference.memory import cache_blocks, free_bytes

CPU = torch.device("cpu")


def blocks(asked: int | None, needed: int, longest: int) -> int:
    return cache_blocks(asked_tokens=asked, needed_tokens=needed, longest=longest, block_size=32, bytes_per_token=1000, device=CPU)


def test_no_more_than_is_needed_and_one_block_for_a_copy() -> None:
    assert blocks(None, 1000, 100) == 33
    assert blocks(1 << 20, 1000, 100) == 33
    assert blocks(320, 1000, 100) == 10
    assert blocks(None, 10, 100) == 5  # the longest sequence must fit in any case


def test_free_memory_is_the_bound_where_nothing_is_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * 32 * 1000)
    assert blocks(None, 1 << 20, 100) == 10


@pytest.mark.parametrize("asked", [128, None])
def test_a_sequence_that_cannot_fit_is_refused(asked, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4 * 32 * 1000)
    with pytest.raises(EngineError, match="takes 5 cache blocks of 32 tokens") as raised:
        blocks(asked, 1 << 20, 100)
    assert raised.value.key == "cache_tokens"


def test_a_machine_gives_a_part_of_what_it_has() -> None:
    assert 1 << 26 < free_bytes(CPU) < 1 << 50
