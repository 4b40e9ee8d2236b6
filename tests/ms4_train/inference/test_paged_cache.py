"""Pools of blocks: sizes as the specification has them, copies that copy, blocks that are zero before their first use."""

from __future__ import annotations

import pytest
import torch

from ms4_train.inference.paged_cache import CACHE_DTYPES, PagedLatentCache
from ms4_train.model import TextConfig


@pytest.mark.parametrize(("dtype", "kibibytes"), [(torch.bfloat16, 22.5), (torch.float8_e4m3fn, 11.25), (torch.float32, 45)])
def test_a_token_of_the_release_takes_what_the_specification_says(dtype, kibibytes) -> None:
    config = TextConfig()
    cache = PagedLatentCache(num_layers=config.num_hidden_layers, width=config.latent_dim, num_blocks=2, block_size=32, dtype=dtype)
    assert cache.bytes_per_block / 32 == kibibytes * 1024
    assert cache.max_bytes == 2 * cache.bytes_per_block


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_copies_and_clears_blocks_of_every_layer_and_no_others(dtype) -> None:
    cache = PagedLatentCache(num_layers=2, width=6, num_blocks=5, block_size=4, dtype=dtype)
    cache.clear_blocks(range(5))
    for layer, pool in enumerate(cache.pools):
        for block in range(5):
            pool[block] = torch.full((4, 6), 10.0 * layer + block).to(dtype)
    cache.copy_blocks([(1, 3), (0, 4)])
    cache.clear_blocks([2])
    for layer, pool in enumerate(cache.pools):
        expected = [10.0 * layer + block for block in (0, 1, None, 1, 0) if block is not None]
        expected.insert(2, 0.0)
        assert [float(pool[block].float().mean()) for block in range(5)] == expected
    cache.copy_blocks([])
