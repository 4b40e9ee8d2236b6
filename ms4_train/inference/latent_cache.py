"""The engine's attention cache: per layer, slot and token the latent and the rotary key (256 + 64 values in the 119B model).

It implements the model's ``LatentCache``. Memory is held per layer as [slots, capacity, c] and grows geometrically in both directions, up
to bounds that are fixed when it is made; a read of neighbouring slots is a view, limited to the longest sequence of the step.

Shape suffixes: t = tokens of a step, b = sequences of a step, s = tokens of the longest sequence, c = latent and rotary key.
Exercise it: ``pytest tests/ms4_train/inference/test_latent_cache.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ms4_train.model.layout import SequenceLayout

_SMALLEST_CAPACITY = 64


def _grown(current: int, needed: int, limit: int) -> int:
    """At least ``needed``, at least twice ``current`` to make growth rare, at most ``limit``."""
    return current if needed <= current else min(limit, max(needed, 2 * current))


@dataclass(frozen=True, eq=False)
class _Step:
    """Where a step's tokens lie in the cache: of each token slot and position, of its sequences the slots and the longest end."""

    layout: SequenceLayout
    position_t: tuple[Tensor, Tensor]
    slots: slice | Tensor
    longest: int


class SlotLatentCache:
    """A latent cache of equal slots.

    Args:
        num_layers: layers of the model.
        width: c, values per token and layer.
        max_slots: most sequences at once.
        max_context: most tokens per sequence.
        dtype: of the values, the model's.
        device: of the values.
    """

    def __init__(self, *, num_layers: int, width: int, max_slots: int, max_context: int, dtype: torch.dtype, device: torch.device) -> None:
        self._width = width
        self._max_slots = max_slots
        self._max_context = max_context
        self._dtype = dtype
        self._device = device
        self._slots = 0
        self._capacity = 0
        self._latent_sc = [torch.zeros(0, 0, width, dtype=dtype, device=device) for _ in range(num_layers)]
        self._last_step: _Step | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        return sum(latent.numel() * latent.element_size() for latent in self._latent_sc)

    @property
    def max_bytes(self) -> int:
        """Most bytes it will ever hold; while it grows, one layer's old values exist besides."""
        return len(self._latent_sc) * self._max_slots * self._max_context * self._width * self._latent_sc[0].element_size()

    def reserve(self, slots: int, tokens: int) -> None:
        """Makes room for ``slots`` sequences of up to ``tokens`` tokens; call it before a step appends. What is held stays."""
        assert slots <= self._max_slots, f"{slots} slots wanted, {self._max_slots} allowed"
        assert tokens <= self._max_context, f"{tokens} tokens wanted, {self._max_context} allowed"
        if slots <= self._slots and tokens <= self._capacity:
            return
        new_slots = _grown(self._slots, slots, self._max_slots)
        new_capacity = _grown(self._capacity, max(tokens, min(_SMALLEST_CAPACITY, self._max_context)), self._max_context)
        for layer, old in enumerate(self._latent_sc):
            # Zeros, not uninitialised memory: a masked position still enters a product, and 0 times NaN is NaN.
            new = torch.zeros(new_slots, new_capacity, self._width, dtype=self._dtype, device=self._device)
            new[: self._slots, : self._capacity] = old
            self._latent_sc[layer] = new
        self._slots, self._capacity = new_slots, new_capacity

    def append(self, layer: int, latent_tc: Tensor, layout: SequenceLayout) -> None:
        """Writes the step's tokens behind what their slots hold."""
        self._latent_sc[layer].index_put_(self._step(layout).position_t, latent_tc)

    def context(self, layer: int, layout: SequenceLayout) -> Tensor:
        """[b, s, c]: the step's sequences from their first token; what lies behind a sequence's end is finite and has no meaning."""
        step = self._step(layout)
        if isinstance(step.slots, slice):
            return self._latent_sc[layer][step.slots, : step.longest]
        return self._latent_sc[layer][:, : step.longest].index_select(0, step.slots)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copies the first ``tokens`` tokens of slot ``source`` over slot ``target``."""
        for latent_sc in self._latent_sc:
            latent_sc[target, :tokens] = latent_sc[source, :tokens]

    def _step(self, layout: SequenceLayout) -> _Step:
        """Where the step's tokens lie; computed once for all layers."""
        if self._last_step is None or self._last_step.layout is not layout:
            self._last_step = self._locate(layout)
        return self._last_step

    def _locate(self, layout: SequenceLayout) -> _Step:
        assert layout.slots is not None, "the engine's layouts name their slots"
        assert max(layout.slots) < self._slots, "reserve() room before a step"
        longest = max(layout.stops)
        assert longest <= self._capacity, "reserve() room before a step"
        first, count = layout.slots[0], len(layout.slots)
        if layout.slots == tuple(range(first, first + count)):
            slots: slice | Tensor = slice(first, first + count)
        else:
            slots = torch.tensor(layout.slots, device=self._device)
        return _Step(layout, (layout.slot_t.to(self._device), layout.position_t.to(self._device)), slots, longest)
