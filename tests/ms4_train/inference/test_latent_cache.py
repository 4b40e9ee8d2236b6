"""The slot cache against plain per-sequence concatenation, and its memory bounds."""

from __future__ import annotations

import random

import pytest
import torch

from ms4_train.inference.latent_cache import SlotLatentCache
from ms4_train.model.layout import SequenceLayout

WIDTH = 6
LAYERS = 2


def make_cache(max_slots: int = 8, max_context: int = 300) -> SlotLatentCache:
    return SlotLatentCache(
        num_layers=LAYERS, width=WIDTH, max_slots=max_slots, max_context=max_context, dtype=torch.float32, device=torch.device("cpu")
    )


def layout_of(lengths: list[int], starts: list[int], slots: list[int]) -> SequenceLayout:
    return SequenceLayout(lengths=tuple(lengths), starts=tuple(starts), slots=tuple(slots))


def test_random_traffic_reads_back_what_plain_lists_hold() -> None:
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    cache = make_cache()
    held: list[torch.Tensor] = []  # per slot [layers, tokens, width]
    for _ in range(120):
        action = rng.random()
        if held and action < 0.2:
            slot = rng.randrange(len(held))
            last = len(held) - 1
            if slot != last:
                cache.move(last, slot, held[last].shape[1])
                held[slot] = held[last]
            held.pop()
            continue
        if len(held) < 8 and action < 0.5:
            held.append(torch.zeros(LAYERS, 0, WIDTH))
            slots = [len(held) - 1]
        elif held:
            slots = sorted(rng.sample(range(len(held)), rng.randint(1, len(held))))
        else:
            continue
        lengths = [rng.randint(1, 20) if rng.random() < 0.3 else 1 for _ in slots]
        starts = [held[slot].shape[1] for slot in slots]
        layout = layout_of(lengths, starts, slots)
        cache.reserve(len(held), max(start + length for start, length in zip(starts, lengths, strict=True)))
        new = torch.randn(LAYERS, sum(lengths), WIDTH, generator=generator)
        for slot, part in zip(slots, new.split(lengths, dim=1), strict=True):
            held[slot] = torch.cat([held[slot], part], dim=1)
        for layer in range(LAYERS):
            cache.append(layer, new[layer], layout)
            context = cache.context(layer, layout)
            assert context.shape == (len(slots), max(held[slot].shape[1] for slot in slots), WIDTH)
            for row, slot in enumerate(slots):
                assert torch.equal(context[row, : held[slot].shape[1]], held[slot][layer])
            assert context.isfinite().all()


def test_neighbouring_slots_are_read_without_a_copy_and_limited_to_the_longest() -> None:
    cache = make_cache()
    cache.reserve(4, 100)
    layout = layout_of([1, 1], [9, 4], [1, 2])
    cache.append(0, torch.ones(2, WIDTH), layout)
    view = cache.context(0, layout)
    assert view.shape == (2, 10, WIDTH)
    view[0, 9] = 7.0
    assert cache.context(0, layout)[0, 9, 0] == 7.0, "the read was a copy"
    apart = cache.context(0, layout_of([1, 1], [9, 4], [1, 3]))
    assert apart.shape == (2, 10, WIDTH)


def test_memory_grows_geometrically_up_to_its_bound_and_is_reported() -> None:
    cache = make_cache(max_slots=4, max_context=1000)
    assert cache.num_bytes == 0
    sizes = []
    for tokens in range(1, 1001):
        cache.reserve(min(4, tokens), tokens)
        sizes.append(cache.num_bytes)
    assert len(set(sizes)) < 12
    assert sizes[-1] == cache.max_bytes == LAYERS * 4 * 1000 * WIDTH * 4
    cache.reserve(1, 1)
    assert cache.num_bytes == sizes[-1]


def test_room_beyond_the_bounds_and_writes_without_room_are_our_own_defects() -> None:
    cache = make_cache(max_slots=2, max_context=50)
    with pytest.raises(AssertionError, match="3 slots"):
        cache.reserve(3, 10)
    with pytest.raises(AssertionError, match="51 tokens"):
        cache.reserve(1, 51)
    cache.reserve(1, 50)
    with pytest.raises(AssertionError, match="reserve"):
        cache.append(0, torch.zeros(1, WIDTH), layout_of([1], [0], [1]))
    with pytest.raises(AssertionError, match="reserve"):
        cache.append(0, torch.zeros(1, WIDTH), layout_of([1], [50], [0]))
