"""Random state survives JSON, bit for bit."""

import json
import random

import numpy as np
import pytest
import torch

from ms4_train.checkpoint.random_state import capture_random_state, restore_random_state, seed_everything
from ms4_train.errors import CheckpointError


def draw():
    python = random.random(), random.gauss(0, 1)
    numpy = np.random.rand(), np.random.standard_normal()  # noqa: NPY002 - the global generator is what is tested
    return *python, *numpy, torch.rand(3).tolist(), torch.randn(1).tolist()


def test_all_generators_go_on_where_they_were():
    seed_everything(7, rank=0)
    draw()
    state = json.loads(json.dumps(capture_random_state()))
    expected = [draw() for _ in range(3)]
    seed_everything(8, rank=0)
    assert draw() != expected[0]
    restore_random_state(state)
    assert [draw() for _ in range(3)] == expected


def test_seeds_and_ranks_give_different_streams():
    streams = []
    for seed, rank in ((1, 0), (1, 1), (2, 0)):
        seed_everything(seed, rank)
        streams.append(draw())
    assert len({stream[0] for stream in streams}) == 3
    assert len({stream[2] for stream in streams}) == 3
    assert len({tuple(stream[4]) for stream in streams}) == 3


@pytest.mark.parametrize("damage", [lambda s: s.pop("numpy"), lambda s: s.update(torch="00"), lambda s: s["python"].update(internal=[1])])
def test_malformed_state_is_refused(damage):
    state = capture_random_state()
    damage(state)
    with pytest.raises(CheckpointError, match="random state"):
        restore_random_state(state)
