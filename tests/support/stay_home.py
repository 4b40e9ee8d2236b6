"""An exchange of tokens in one process: all experts are here. The real one is tested on ranks, in ``tests/ms4_train/parallel``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ms4_train.model.moe import Arrivals


class StayHome:
    """Lets the tokens of a call be computed here, ``rows`` of them at a time, and writes the calls down.

    Attributes:
        calls: the shapes of hidden states, ids and weights of each; ``abandoned`` where nobody took the tokens.
    """

    def __init__(self, rows: int = 1 << 30) -> None:
        self.calls: list[Any] = []
        self._rows = rows

    def start(
        self,
        hidden_td: Tensor,
        expert_ids_tk: Tensor,
        weights_tk: Tensor,
        adapter_of_rows: Callable[[int], Tensor] | None = None,
        *,
        by_adapter: bool = False,
    ) -> StayHome:
        """Keep the ids until ``finish``."""
        assert not by_adapter
        self.calls.append((tuple(hidden_td.shape), tuple(expert_ids_tk.shape), tuple(weights_tk.shape)))
        self.hidden_rd, self._ids_rk, self.weights_rk = hidden_td, expert_ids_tk, weights_tk
        return self

    def finish(self, hidden_rd: Tensor, weights_rk: Tensor, compute: Callable[[Arrivals], Tensor]) -> Tensor:
        """Compute them."""
        parts = zip(hidden_rd.split(self._rows), self._ids_rk.split(self._rows), weights_rk.split(self._rows), strict=True)
        return torch.cat([compute(Arrivals(hidden, ids, weights, None, ids.numel())) for hidden, ids, weights in parts])

    def abandon(self) -> None:
        """Write that down."""
        self.calls.append("abandoned")
