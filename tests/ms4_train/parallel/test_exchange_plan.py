"""The rows of a routing, against sets written out token by token."""

import pytest
import torch
from support.exchange_cases import EXPERTS, ROUTINGS, tokens_of_ranks

from ms4_train.parallel.exchange_plan import Plan, outgoing_rows


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_token_goes_once_to_each_rank_of_its_experts(routing, num_ranks):
    ids_tk = torch.cat([tokens.ids_tk for tokens in tokens_of_ranks(routing, 4)])
    rows = outgoing_rows(ids_tk, EXPERTS, num_ranks)
    local = EXPERTS // num_ranks
    expected = [
        (rank, token) for rank in range(num_ranks) for token, ids in enumerate(ids_tk.tolist()) if rank in {e // local for e in ids}
    ]
    assert rows.token_s.tolist() == [token for _, token in expected]
    assert rows.rows_p.tolist() == [sum(rank == p for rank, _ in expected) for p in range(num_ranks)]
    assert rows.pairs_p.tolist() == [int((ids_tk // local == p).sum()) for p in range(num_ranks)]
    slots = [[e - rank * local if e // local == rank else -1 for e in ids_tk[token].tolist()] for rank, token in expected]
    assert rows.local_ids_sk.tolist() == slots
    assert rows.local_ids_sk.dtype == torch.int32
    for token, row_j in enumerate(rows.row_tj.tolist()):
        own = [index for index, (_, other) in enumerate(expected) if other == token]
        assert row_j == own + [-1] * (min(ids_tk.shape[1], num_ranks) - len(own))


def test_each_pair_travels_in_one_row():
    """So that a routing weight has its gradient in one row, and zeros in the token's others."""
    ids_tk = torch.cat([tokens.ids_tk for tokens in tokens_of_ranks("random", 4)])
    rows = outgoing_rows(ids_tk, EXPERTS, 4)
    carried_tk = torch.zeros_like(ids_tk).index_add(0, rows.token_s, (rows.local_ids_sk >= 0).long())
    assert bool((carried_tk == 1).all())
    assert rows.token_s.numel() < ids_tk.numel()  # fewer rows than pairs


def test_rows_that_stay_are_not_remote():
    plan = Plan(torch.empty(0), torch.empty(0), [3, 5, 2], [1, 7, 4], 20, False, own=1)
    assert plan.remote_sent() == 5
    assert plan.remote_received() == 5
