"""The counting sort on a CUDA device: the order that torch's stable sort gives, from one pair to 128k, without waiting for the device."""

from __future__ import annotations

import pytest
import torch
from support import gpu
from support.gpu import needs_gpu, no_host_wait

from ms4_kernels.routing import sort_by_expert

pytestmark = needs_gpu


def ids_of(tokens, num_experts, top_k=4):
    return torch.rand(tokens, num_experts).topk(min(top_k, num_experts)).indices


def order_of(ids_tk, num_experts, num_adapters=0, **options):
    adapter_t = torch.arange(ids_tk.shape[0], device=ids_tk.device) * 7 % (num_adapters + 1) - 1 if num_adapters else None
    order = sort_by_expert(ids_tk, num_experts, adapter_t=adapter_t, num_adapters=num_adapters, **options)
    return [*order, *([] if order.segment_ends_s is None else [order.segment_ends_s])]


@pytest.mark.parametrize("num_adapters", [0, 3])
@pytest.mark.parametrize(("tokens", "num_experts"), [(0, 6), (1, 1), (211, 128), (4096, 5), (32768, 128)])
def test_order_equals_that_of_torch(tokens, num_experts, num_adapters):
    ids_tk = ids_of(tokens, num_experts)
    mine = order_of(ids_tk.to(gpu.DEVICE), num_experts, num_adapters)
    oracle = order_of(ids_tk, num_experts, num_adapters, backend="reference")
    for left, right in zip(mine, oracle, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left.cpu(), right)


def test_pairs_out_of_range_lie_behind_the_last_expert():
    ids_tk = ids_of(500, 16)
    ids_tk[[3, 40, 499]] = torch.tensor([-1, 16, 2**40])[:, None]
    order = sort_by_expert(ids_tk.to(gpu.DEVICE), 16)
    assert int(order.ends_e[-1]) == 4 * 497
    assert set(order.token_r[4 * 497 :].tolist()) == {3, 40, 499}


def test_the_host_never_waits_and_runs_agree_to_the_bit():
    ids_tk = ids_of(5000, 128).to(gpu.DEVICE)
    first = order_of(ids_tk, 128)
    with no_host_wait():
        second = order_of(ids_tk, 128)
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
