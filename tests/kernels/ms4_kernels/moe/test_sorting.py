"""Rows sorted by expert: against NumPy's stable sort, and refused ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ms4_kernels.moe.sorting import sort_by_expert


@pytest.mark.parametrize(("tokens", "slots", "num_experts"), [(50, 4, 8), (1, 2, 16), (0, 3, 4), (7, 1, 1)])
def test_order_equals_a_stable_sort(tokens, slots, num_experts):
    ids_tk = torch.randint(0, num_experts, (tokens, slots))
    order = sort_by_expert(ids_tk, num_experts)
    flat = ids_tk.flatten().numpy()
    pairs = np.argsort(flat, kind="stable")
    assert np.array_equal(order.pair_r, pairs)
    assert np.array_equal(order.token_r, pairs // slots)
    assert np.array_equal(order.ends_e, np.cumsum(np.bincount(flat, minlength=num_experts)))
    assert torch.equal(order.pair_r[order.row_tk.flatten()], torch.arange(tokens * slots))


@pytest.mark.parametrize("bad", [-1, 4])
def test_ids_out_of_range_are_refused(bad):
    with pytest.raises((ValueError, RuntimeError)):
        sort_by_expert(torch.tensor([[0, bad]]), 4)
