"""Which rows a rank sends to which other one: a token goes once to every rank that holds some of its experts.

Rows are sorted by rank, then by token, so those for one rank are neighbours and all orders follow from the expert ids alone.
Exercise it: ``pytest tests/ms4_train/parallel/test_exchange_plan.py``.

Shape suffixes: t tokens of this rank, k experts of a token, s rows sent, p ranks of the expert-parallel group, j the ranks that a token
goes to, min(k, p) at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ms4_train.parallel import traffic


@dataclass(frozen=True)
class OutgoingRows:
    """The rows of one rank's tokens.

    Attributes:
        token_s: int64, the token of each row.
        row_tj: int64 [T, min(K, P)], the rows of each token in the order of their ranks, then -1.
        local_ids_sk: int32, for each slot of the row's token the expert among those of the row's rank; -1: it lives elsewhere.
        rows_p: int64, rows for each rank.
        pairs_p: int64, (token, expert) pairs for each rank.
    """

    token_s: Tensor
    row_tj: Tensor
    local_ids_sk: Tensor
    rows_p: Tensor
    pairs_p: Tensor


def outgoing_rows(expert_ids_tk: Tensor, num_experts: int, num_ranks: int) -> OutgoingRows:
    """Make the rows of a routing whose ids, int64, count all experts, of which rank p holds the p-th of equal shares."""
    (tokens, top_k), device = expert_ids_tk.shape, expert_ids_tk.device
    num_local = num_experts // num_ranks
    rank_tk = expert_ids_tk // num_local
    goes_tp = torch.zeros(tokens, num_ranks, dtype=torch.bool, device=device).scatter_(1, rank_tk, True)
    rank_s, token_s = goes_tp.t().nonzero(as_tuple=True)
    column_tp = goes_tp.cumsum(1) - 1
    row_tj = torch.full((tokens, min(top_k, num_ranks)), -1, device=device)
    row_tj[token_s, column_tp[token_s, rank_s]] = torch.arange(token_s.numel(), device=device)
    rank_s1, ids_sk = rank_s.unsqueeze(1), expert_ids_tk[token_s]
    local_ids_sk = torch.where(rank_tk[token_s] == rank_s1, ids_sk - rank_s1 * num_local, -1).int()
    flat_ranks = rank_tk.reshape(-1)
    # Not bincount, which would make the host wait for a GPU.
    pairs_p = torch.zeros(num_ranks, dtype=torch.int64, device=device).scatter_add_(0, flat_ranks, torch.ones_like(flat_ranks))
    return OutgoingRows(token_s, row_tj, local_ids_sk, goes_tp.sum(0), pairs_p)


@dataclass(frozen=True)
class Plan:
    """What both passes of one exchange need; small enough to keep (8 bytes for each row and 8 J for each token).

    Attributes:
        token_s: as in :class:`OutgoingRows`.
        row_tj: likewise.
        sent: rows for each rank of the group.
        received: rows from each.
        received_pairs: (token, expert) pairs among the latter: what this rank's experts have to compute.
        by_adapter: some rank's rows are for several adapters, so that rows carry their adapter's index.
        own: this rank's place in the group.
    """

    token_s: Tensor
    row_tj: Tensor
    sent: list[int]
    received: list[int]
    received_pairs: int
    by_adapter: bool
    own: int

    def remote_sent(self) -> int:
        """Rows that leave this rank on the way to experts."""
        return sum(self.sent) - self.sent[self.own]

    def remote_received(self) -> int:
        """Rows that came from other ranks, and go back there."""
        return sum(self.received) - self.received[self.own]


COUNTS = 3
"""int64 numbers that each rank tells every other one before the rows: rows, pairs, and whether rows are for several adapters."""


def agree(rows: OutgoingRows, group: dist.ProcessGroup, *, by_adapter: bool) -> Plan:
    """Tell the other ranks of the group how many rows will come, and hear it from them. Collective."""
    own = dist.get_rank(group)
    counts_pc = torch.stack((rows.rows_p, rows.pairs_p, torch.full_like(rows.rows_p, int(by_adapter))), 1)
    told_pc = torch.empty_like(counts_pc)
    dist.all_to_all_single(told_pc, counts_pc, group=group)
    traffic.count("metadata", (counts_pc.shape[0] - 1) * COUNTS * counts_pc.element_size())
    (sent, _, _), (received, pairs, several) = torch.stack((counts_pc, told_pc)).transpose(1, 2).tolist()
    return Plan(rows.token_s, rows.row_tj, sent, received, sum(pairs), any(several), own)
