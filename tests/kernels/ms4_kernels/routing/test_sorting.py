"""Rows sorted by expert and adapter: against NumPy's stable sort of pairs, and refused ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ms4_kernels.routing import sort_by_expert

SHAPES = [(50, 4, 8), (1, 2, 16), (0, 3, 4), (7, 1, 1), (9000, 4, 128)]
BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "slots", "num_experts"), SHAPES)
def test_order_equals_a_stable_sort(backend, tokens, slots, num_experts):
    ids_tk = torch.randint(0, num_experts, (tokens, slots))
    order = sort_by_expert(ids_tk, num_experts, backend=backend)
    flat = ids_tk.flatten().numpy()
    pairs = np.argsort(flat, kind="stable")
    assert order.pair_r.dtype == order.row_tk.dtype == torch.int64
    assert order.ends_e.dtype == torch.int32
    assert np.array_equal(order.pair_r, pairs)
    assert np.array_equal(order.token_r, pairs // slots)
    assert np.array_equal(order.ends_e, np.cumsum(np.bincount(flat, minlength=num_experts)))
    assert torch.equal(order.pair_r[order.row_tk.flatten()], torch.arange(tokens * slots))
    assert order.segment_ends_s is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("tokens", "slots", "num_experts", "num_adapters"), [(50, 4, 8, 3), (1, 2, 16, 1), (0, 3, 4, 2), (300, 4, 128, 600)]
)
def test_adapters_order_the_rows_of_an_expert(backend, tokens, slots, num_experts, num_adapters):
    """The last case has more segments than a 16-bit key tells apart."""
    ids_tk = torch.randint(0, num_experts, (tokens, slots))
    adapter_t = torch.randint(-1, num_adapters, (tokens,))
    order = sort_by_expert(ids_tk, num_experts, adapter_t=adapter_t, num_adapters=num_adapters, backend=backend)
    expert, adapter = ids_tk.flatten().numpy(), adapter_t.repeat_interleave(slots).numpy()
    assert np.array_equal(order.pair_r, np.lexsort((adapter, expert)))  # stable; the last key counts most
    assert torch.equal(order.pair_r[order.row_tk.flatten()], torch.arange(tokens * slots))
    ends = [
        int(((expert < e) | ((expert == e) & (adapter <= a))).sum()) for e in range(num_experts) for a in range(-1, num_adapters)
    ] if num_adapters < 100 else None  # fmt: skip
    assert order.segment_ends_s is not None
    assert order.segment_ends_s.dtype == torch.int32
    assert ends is None or order.segment_ends_s.tolist() == ends
    assert torch.equal(order.ends_e, order.segment_ends_s.view(num_experts, -1)[:, -1])
    assert np.array_equal(order.ends_e, np.cumsum(np.bincount(expert, minlength=num_experts)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_adapters", [0, 2])
def test_pairs_without_an_expert_have_no_row(backend, num_adapters):
    ids_tk = torch.randint(-1, 5, (60, 3))
    ids_tk[7] = -1
    adapter_t = torch.randint(-1, num_adapters, (60,)) if num_adapters else None
    num_rows = int((ids_tk >= 0).sum())
    order = sort_by_expert(ids_tk, 5, adapter_t=adapter_t, num_adapters=num_adapters, num_rows=num_rows, backend=backend)
    # The same pairs among those of a layer whose expert 5 stands for none: NumPy's order without its end.
    adapter = np.zeros(180) if adapter_t is None else adapter_t.repeat_interleave(3).numpy()
    pairs = np.lexsort((adapter, ids_tk.where(ids_tk >= 0, 5).flatten().numpy()))[:num_rows]
    assert np.array_equal(order.pair_r, pairs)
    assert torch.equal(order.row_tk.flatten()[order.pair_r], torch.arange(num_rows))
    assert torch.equal(order.row_tk < 0, ids_tk < 0)
    assert order.ends_e.tolist() == [int(((ids_tk >= 0) & (ids_tk <= e)).sum()) for e in range(5)]
    assert num_adapters == 0 or order.segment_ends_s[-1] == num_rows


def test_a_wrong_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="3 slots have an expert, not 4"):
        sort_by_expert(torch.tensor([[0, -1], [1, 1]]), 2, num_rows=4)


def test_an_order_unpacks_to_what_a_backward_saves():
    order = sort_by_expert(torch.tensor([[1, 0]]), 2, adapter_t=torch.tensor([0]), num_adapters=1)
    pair_r, row_tk, ends_e = order
    assert pair_r is order.pair_r
    assert row_tk is order.row_tk
    assert ends_e is order.ends_e


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-2, 4, 2**40])
def test_ids_out_of_range_are_refused(backend, bad):
    with pytest.raises(ValueError, match=f"expert id {bad} in a layer of 4 experts"):
        sort_by_expert(torch.tensor([[0, bad]]), 4, backend=backend)


@pytest.mark.parametrize("bad", [-2, 3])
def test_adapters_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"adapter {bad} in a batch of 3 adapters"):
        sort_by_expert(torch.tensor([[0, 1], [2, 3]]), 4, adapter_t=torch.tensor([0, bad]), num_adapters=3)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[3\] are not \[T, K\]"):
        sort_by_expert(torch.tensor([0, 1, 2]), 4)
    with pytest.raises(ValueError, match="not given for each token"):
        sort_by_expert(torch.tensor([[0, 1]]), 4, adapter_t=torch.tensor([0, 1]), num_adapters=2)


def test_narrow_ids_do_not_overflow():
    ids_tk, adapter_t = torch.randint(0, 100, (50, 2)), torch.randint(-1, 3, (50,))
    expected = sort_by_expert(ids_tk, 100, adapter_t=adapter_t, num_adapters=3)
    actual = sort_by_expert(ids_tk.to(torch.uint8), 100, adapter_t=adapter_t, num_adapters=3)
    assert torch.equal(actual.pair_r, expected.pair_r)
    assert torch.equal(actual.segment_ends_s, expected.segment_ends_s)


@pytest.mark.parametrize("adapters", [None, torch.zeros(3)])
def test_floating_ids_are_refused(adapters):
    ids = torch.zeros(3, 2) if adapters is None else torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="integers"):
        sort_by_expert(ids, 4, adapter_t=adapters, num_adapters=1)
