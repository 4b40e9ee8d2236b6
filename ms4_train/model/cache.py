"""The latent KV cache: what attention keeps of a token is one latent and one rotated key part, shared by all heads.

Exercise it: ``pytest tests/ms4_train/model/test_cache.py``.

Shape suffixes: l layers, n slots, p positions a slot can hold, t new tokens, b sequences of the batch, s positions of the longest one,
c = kv_lora_rank + qk_rope_head_dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ms4_train.model.config import TextConfig
from ms4_train.model.layout import SequenceLayout


class LatentCache(Protocol):
    """What attention needs of a cache. Who holds which slot, and for how long, is the caller's business."""

    def append(self, layer: int, latent_tc: Tensor, layout: SequenceLayout) -> None:
        """Store the new tokens of ``layout`` at their slots and positions."""
        ...

    def context(self, layer: int, layout: SequenceLayout) -> Tensor:
        """Return [B, S, C]: each sequence from position 0, with S = max(layout.stops); values beyond a stop are finite and ignored."""
        ...


class DenseLatentCache:
    """A rectangle of slots times positions; simple, and enough for batches of similar length."""

    def __init__(
        self, config: TextConfig, *, slots: int, max_len: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.max_len = max_len
        self._latents_lnpc = torch.zeros(config.num_hidden_layers, slots, max_len, config.latent_dim, dtype=dtype, device=device)

    def append(self, layer: int, latent_tc: Tensor, layout: SequenceLayout) -> None:
        """Store the new tokens.

        Raises:
            ValueError: a sequence outgrows its slot, or the layout names no slots.
        """
        if max(layout.stops) > self.max_len:
            raise ValueError(f"a sequence of {max(layout.stops)} tokens does not fit a cache of {self.max_len} positions")
        device = self._latents_lnpc.device
        self._latents_lnpc[layer, layout.slot_t.to(device), layout.position_t.to(device)] = latent_tc.detach().to(self._latents_lnpc.dtype)

    def context(self, layer: int, layout: SequenceLayout) -> Tensor:
        """Return the sequences' latents; a view when the slots are consecutive."""
        if layout.slots is None:
            raise ValueError("a forward pass with a cache needs the layout's slots")
        first, count = layout.slots[0], len(layout.slots)
        latents_npc = self._latents_lnpc[layer, :, : max(layout.stops)]
        if layout.slots == tuple(range(first, first + count)):
            return latents_npc[first : first + count]
        return latents_npc[torch.tensor(layout.slots, device=latents_npc.device)]
