"""What the routers' own losses need of a forward pass, kept while it runs: sums over its tokens, with gradient.

``Mistral4Router`` hands its logits to a recorder where it has one; ``ms4_train.training.router_loss`` makes losses of the sums.
Exercise it: ``pytest tests/ms4_train/model/test_router_terms.py``.

Shape suffixes: t tokens, e experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RouterRecorder:
    """Collects sums of each router, in the order of the layers, while ``recording``.

    Gradient checkpointing runs the layers again in the backward pass. It wants the same operations then, so the sums are always computed;
    but they are kept only while recording, because a kept one would hold what the layer computed.

    Args:
        probabilities: sum over tokens of the softmax over all experts, [E].
        squared_z: sum over tokens of the squared logsumexp of the logits, [].
    """

    def __init__(self, *, probabilities: bool, squared_z: bool) -> None:
        self._wants = probabilities, squared_z
        self._open = False
        self.probabilities: list[Tensor] = []
        self.squared_z: list[Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Forget earlier sums and keep those of the one forward pass inside."""
        self.clear()
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def clear(self) -> None:
        """Let go of the sums, and with them of the graph behind them."""
        self.probabilities, self.squared_z = [], []

    def record(self, logits_te: Tensor) -> None:
        """Take the logits of one router, [T, E]; nothing is computed where there is no gradient."""
        if not torch.is_grad_enabled():
            return
        wants_probabilities, wants_squared_z = self._wants
        if wants_probabilities:
            probability_e = logits_te.softmax(dim=-1).sum(dim=0)
            if self._open:
                self.probabilities.append(probability_e)
        if wants_squared_z:
            squared_z = logits_te.logsumexp(dim=-1).square().sum()
            if self._open:
                self.squared_z.append(squared_z)
