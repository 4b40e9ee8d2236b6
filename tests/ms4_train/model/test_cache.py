"""Pools of a cache, and the check that sequences fit their blocks."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_config

from ms4_train.model import DenseLatentCache, SequenceLayout
from ms4_train.model.cache import check_room


def test_a_dense_cache_is_one_block_of_zeros_per_slot():
    config = tiny_config(num_hidden_layers=3)
    cache = DenseLatentCache(config, slots=4, max_len=8, dtype=torch.bfloat16)
    assert len(cache.pools) == 3
    for pool_nsm in cache.pools:
        assert (tuple(pool_nsm.shape), pool_nsm.dtype) == ((4, 8, config.latent_dim), torch.bfloat16)
        assert not pool_nsm.any()
    assert len({pool_nsm.data_ptr() for pool_nsm in cache.pools}) == 3


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (SequenceLayout((1,), (8,), (2,)), "9 tokens does not fit a cache of 8"),
        (SequenceLayout((3, 6), (0, 3), blocks=((0,), (1,))), "9 tokens does not fit a cache of 8"),
        (SequenceLayout((1,), (16,), blocks=((0, 1),)), "17 tokens does not fit a cache of 16"),
        (SequenceLayout((1,), blocks=((),)), "1 tokens does not fit a cache of 0"),
        (SequenceLayout((2,), slots=(4,)), "blocks 4 to 4 of a cache of 4"),
        (SequenceLayout((2,), blocks=((-1, 3),)), "blocks -1 to 3 of a cache of 4"),
        (SequenceLayout((2,)), "slots"),
    ],
)
def test_what_does_not_fit_is_refused(layout, says):
    with pytest.raises(ValueError, match=says):
        check_room(DenseLatentCache(tiny_config(), slots=4, max_len=8), layout)


def test_what_fits_to_the_last_token_passes():
    check_room(DenseLatentCache(tiny_config(), slots=4, max_len=8), SequenceLayout((8, 16), blocks=((3,), (2, 0))))
