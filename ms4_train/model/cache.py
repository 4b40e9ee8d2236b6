"""The latent KV cache: what attention keeps of a token is one latent and one rotated key part, shared by all heads.

A cache is a pool of blocks per layer. Which blocks a sequence has, the layout says; who may have them, and for how long, is the caller's
business. Exercise it: ``pytest tests/ms4_train/model/test_cache.py``.

Shape suffixes: n blocks, s tokens of a block, m = kv_lora_rank + qk_rope_head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ms4_train.model.config import TextConfig
from ms4_train.model.layout import SequenceLayout


class LatentCache(Protocol):
    """What attention needs of a cache."""

    @property
    def pools(self) -> Sequence[Tensor]:
        """Of each layer [n, s, m], contiguous."""
        ...


class DenseLatentCache:
    """A pool whose blocks, the slots, are as large as a sequence can get; simple, and enough for batches of similar length.

    Attributes:
        pools: of each layer [n, s, m], zeros at first.
    """

    def __init__(
        self, config: TextConfig, *, slots: int, max_len: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        shape = (slots, max_len, config.latent_dim)
        self.pools = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]


def check_room(cache: LatentCache, layout: SequenceLayout) -> None:
    """See that every sequence's blocks exist and hold its tokens.

    Raises:
        ValueError: they do not, or the layout names none.
    """
    num_blocks, block_size = cache.pools[0].shape[:2]
    for table, stop in zip(layout.tables, layout.stops, strict=True):
        if stop > len(table) * block_size:
            raise ValueError(f"a sequence of {stop} tokens does not fit a cache of {len(table) * block_size} positions")
        if not 0 <= min(table) <= max(table) < num_blocks:
            raise ValueError(f"blocks {min(table)} to {max(table)} of a cache of {num_blocks}")
