"""Tokens in the order of their experts, and back.

Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_sorting.py``.

Shape suffixes: t tokens, k experts per token, e experts, r = t*k rows sorted by expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ExpertOrder(NamedTuple):
    """How the T*K (token, slot) pairs lie when sorted by expert.

    Attributes:
        pair_r: int64, the pair ``t * K + k`` that each sorted row belongs to; rows of one expert keep the tokens' order.
        row_tk: int64, the inverse: the sorted row of each pair.
        ends_e: int32, one past the last row of each expert (running sum of the counts).
    """

    pair_r: Tensor
    row_tk: Tensor
    ends_e: Tensor

    @property
    def token_r(self) -> Tensor:
        """The token of each sorted row, int64 [R]."""
        return self.pair_r // self.row_tk.shape[1]


def sort_by_expert(expert_ids_tk: Tensor, num_experts: int) -> ExpertOrder:
    """Sort (stable, hence deterministic) the pairs of a routing by expert.

    Raises:
        ValueError: an id lies outside ``0 .. num_experts - 1``.
    """
    ids_r = expert_ids_tk.reshape(-1)
    counts_e = torch.bincount(ids_r, minlength=num_experts)  # refuses negative ids itself
    if counts_e.numel() != num_experts:
        raise ValueError(f"expert id {int(ids_r.max())} in a layer of {num_experts} experts")
    pair_r = ids_r.argsort(stable=True)
    row_tk = torch.empty_like(pair_r)
    row_tk[pair_r] = torch.arange(pair_r.numel(), device=pair_r.device)
    return ExpertOrder(pair_r, row_tk.view(expert_ids_tk.shape), counts_e.cumsum(0).to(torch.int32))
