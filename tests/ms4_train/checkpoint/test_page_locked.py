"""Blocks that torch does not enlarge: every vector is its own, and together they are little larger than what is in them."""

import pytest
import torch

from ms4_train.checkpoint.page_locked import PageLocked, page_locked_bytes

SIZES = {
    "alike": [3 << 10] * 300,
    "powers of two": [1 << 12, 1 << 11] * 100,
    "mixed": [5000, 7, 1, 130_000, 4096, 4097] * 40,
    "one": [1000],
}


@pytest.mark.parametrize(("size", "taken"), [(0, 0), (1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192), ((1 << 32) + 1, 1 << 33)])
def test_a_request_is_rounded_to_a_power_of_two(size, taken):
    assert page_locked_bytes(size) == taken


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_vectors_do_not_overlap(sizes):
    room = PageLocked(sum(sizes), pin=False)
    taken = [room.take(size).fill_(number) for number, size in enumerate(sizes)]
    assert all(
        vector.shape == (size,) and bool((vector == number).all()) for number, (vector, size) in enumerate(zip(taken, sizes, strict=True))
    )


@pytest.mark.parametrize("name", ["alike", "powers of two", "mixed"])
def test_blocks_take_little_more_than_what_is_in_them(name):
    sizes = SIZES[name]
    blocks, empty = set(), torch.empty

    def watched(size, **keys):
        blocks.add(size)
        return empty(size, **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", watched)
        room = PageLocked(sum(sizes), pin=False)
        for size in sizes:
            room.take(size)
    assert all(size == page_locked_bytes(size) for size in blocks)
    assert sum(sizes) <= room.values <= 1.05 * sum(sizes)


def test_control_one_request_for_each_vector_takes_a_third_more():
    sizes = SIZES["alike"]
    assert sum(page_locked_bytes(4 * size) for size in sizes) > 1.3 * 4 * sum(sizes)


def test_a_vector_more_than_announced_gets_a_block_too():
    room = PageLocked(8, pin=False)
    assert [room.take(size).numel() for size in (8, 5, 3)] == [8, 5, 3]
    assert room.values == 16
