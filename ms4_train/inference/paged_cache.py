"""The engine's attention cache: blocks of tokens, per layer one pool of them; who holds which block is ``blocks``' business.

A token takes one latent and one rotated key part, shared by all heads: 256 + 64 values in each of 36 layers of the 119B model, which is
22.5 KiB in bf16 and 11.25 KiB in fp8. Exercise it: ``pytest tests/ms4_train/inference/test_paged_cache.py``.

Shape suffixes: n blocks, s tokens of a block, m latent and rotary key.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CACHE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn)
"""What latents can be stored as; float64 is for models in it. fp8 is e4m3 without a scale: latents are normalised, values beyond 448 are
clipped."""


class PagedLatentCache:
    """Pools of cache blocks.

    Args:
        num_layers: layers of the model.
        width: m, values per token and layer.
        num_blocks: bound of the pool. On a CPU the memory of a block is the system's until the block is first written.
        block_size: tokens of a block.
        dtype: one of ``CACHE_DTYPES``.
        device: of the values.

    Attributes:
        pools: of each layer [n, s, m].
    """

    def __init__(
        self, *, num_layers: int, width: int, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        assert dtype in CACHE_DTYPES, dtype
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.pools = [torch.empty(num_blocks, block_size, width, dtype=dtype, device=device) for _ in range(num_layers)]

    @property
    def bytes_per_block(self) -> int:
        """In all layers."""
        return sum(pool[0].numel() * pool.element_size() for pool in self.pools)

    @property
    def max_bytes(self) -> int:
        """Of all blocks."""
        return self.num_blocks * self.bytes_per_block

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, each pair (source, target); no target is a source of another pair."""
        if not pairs:
            return
        source_n, target_n = torch.tensor(pairs, device=self.pools[0].device).unbind(1)
        for pool_nsm in self.pools:
            raw_nsm: Tensor = pool_nsm.view(torch.uint8) if pool_nsm.dtype == torch.float8_e4m3fn else pool_nsm
            raw_nsm[target_n] = raw_nsm[source_n]

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Zero blocks that were never written: a masked value still enters a product, and 0 times NaN is NaN."""
        index_n = torch.tensor(blocks, dtype=torch.int64, device=self.pools[0].device)
        for pool_nsm in self.pools:
            raw_nsm: Tensor = pool_nsm.view(torch.uint8) if pool_nsm.dtype == torch.float8_e4m3fn else pool_nsm
            raw_nsm[index_n] = 0
