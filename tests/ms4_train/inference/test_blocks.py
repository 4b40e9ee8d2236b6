"""Blocks: counted, found by what they hold, reused oldest first, and never lost, whatever the order of calls."""

from __future__ import annotations

import random

import pytest

from ms4_train.inference.blocks import BlockPool, block_name, first_name


def test_names_tell_apart_what_latents_depend_on() -> None:
    root = first_name("")
    base = block_name(root, [1, 2, 3, 4])
    others = [
        block_name(first_name("adapter 1"), [1, 2, 3, 4]),
        block_name(root, [1, 2, 3, 5]),
        block_name(root, [1, 2, 3, 4], [b"an image"]),
        block_name(root, [1, 2, 3, 4], [b"another image"]),
        block_name(base, [1, 2, 3, 4]),
    ]
    assert len({base, *others}) == 6
    assert base == block_name(first_name(""), (1, 2, 3, 4))


def test_a_block_is_found_by_name_until_its_room_is_needed() -> None:
    pool = BlockPool(3)
    fresh: list[int] = []
    blocks = [pool.take(fresh) for _ in range(2)]
    assert fresh == blocks
    names = [block_name(first_name(""), [1]), block_name(first_name(""), [2])]
    for block, name in zip(blocks, names, strict=True):
        pool.name(block, name)
    pool.give_back(blocks)
    assert pool.num_cached == 2
    assert pool.find(names) == blocks
    third = pool.take(fresh)  # the unnamed one goes first
    assert third not in blocks
    pool.take(fresh)
    assert pool.find(names) == blocks[:1]  # the last block of a sequence goes before those before it
    assert len(fresh) == 3


def test_only_an_unbroken_beginning_is_found() -> None:
    pool = BlockPool(4)
    blocks = [pool.take([]) for _ in range(3)]
    names = [bytes([number]) for number in range(3)]
    pool.name(blocks[0], names[0])
    pool.name(blocks[2], names[2])
    assert pool.find(names) == blocks[:1]
    pool.forget_names()
    assert pool.find(names) == []


def test_without_a_cache_nothing_is_found() -> None:
    pool = BlockPool(2, caches=False)
    pool.name(pool.take([]), b"name")
    assert pool.find([b"name"]) == []


def test_giving_back_twice_is_a_defect() -> None:
    pool = BlockPool(2)
    block = pool.take([])
    pool.give_back([block])
    with pytest.raises(AssertionError, match="more often than it was taken"):
        pool.give_back([block])


def test_random_use_loses_no_block_and_mixes_up_no_content() -> None:
    """A model of the pool: a dictionary of what each block holds. Whoever finds a name must find the content of that name."""
    rng = random.Random(5)
    pool = BlockPool(12)
    content: dict[int, bytes] = {}
    held: list[int] = []
    for step in range(4000):
        if pool.num_free and (not held or rng.random() < 0.45):
            if rng.random() < 0.4 and content:
                name = rng.choice(list(content.values()))
                for block in pool.find([name]):
                    assert content[block] == name
                    pool.share(block)
                    held.append(block)
            else:
                block = pool.take([])
                name = f"{step % 40}".encode()
                content[block] = name
                pool.name(block, name)
                held.append(block)
        elif held:
            pool.give_back([held.pop(rng.randrange(len(held)))])
        assert pool.num_used == len(set(held))
        assert all(pool.is_shared(block) == (held.count(block) > 1) for block in set(held))
    pool.give_back(held)
    assert pool.num_free == 12
