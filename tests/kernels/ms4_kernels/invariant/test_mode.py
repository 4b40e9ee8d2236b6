"""The mode as a context: whatever form an operation comes in, nothing inside changes a row, nothing outside stays changed.

A whole network is in ``test_mode_network.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ms4_kernels.attention import PackedDocuments, packed_attention
from ms4_kernels.invariant import batch_invariant
from ms4_kernels.moe import experts
from ms4_kernels.native.linear import linear, lora_linear, serves_lora
from ms4_kernels.routing import sort_by_expert

WEIGHT = torch.randn(256, 256, generator=torch.Generator().manual_seed(1)) / 16
LOW = torch.randn(8, 256, generator=torch.Generator().manual_seed(2)) / 16


def adapted(x):
    """The compiled form where it serves and pays, its parts otherwise, as a LoRA layer does."""
    if serves_lora(x, WEIGHT, LOW, LOW.t().contiguous()):
        return lora_linear(x, WEIGHT, LOW, LOW.t().contiguous(), 0.5)
    return linear(x, WEIGHT) + 0.5 * linear(linear(x, LOW), LOW.t().contiguous())


OURS = {
    "linear": lambda x: linear(x, WEIGHT),
    "low rank": adapted,
    "gated": lambda x: F.silu(linear(x, WEIGHT)) * x,
    "normalised": lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
}


@pytest.mark.parametrize("name", OURS)
def test_operations_that_choose_by_rows_choose_one_way(name):
    x = torch.randn(100, 256)
    with batch_invariant():
        together = OURS[name](x)
        for rows in (slice(0, 1), slice(99, 100), slice(17, 90)):
            assert torch.equal(OURS[name](x[rows]), together[rows])


def test_control_they_do_not_outside():
    x = torch.randn(100, 256)
    assert any(not torch.equal(OURS[name](x[:1]), OURS[name](x)[:1]) for name in ("linear", "low rank"))


def test_triton_experts_take_one_tile():
    interpreter = pytest.importorskip("support.triton_interpreter")
    hidden_td, ids_tk, weights_tk = torch.randn(60, 32), torch.randint(0, 4, (60, 2)), torch.rand(60, 2)
    gate_up_eid, down_edn = torch.randn(4, 48, 32) / 6, torch.randn(4, 32, 24) / 5
    with interpreter.interpreted(), batch_invariant(), torch.inference_mode():
        together = experts(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk)
        for rows in (slice(0, 1), slice(50, 60)):
            assert torch.equal(experts(hidden_td[rows], gate_up_eid, down_edn, ids_tk[rows], weights_tk[rows]), together[rows])


def test_control_tiles_follow_the_rows_outside():
    operands = pytest.importorskip("ms4_kernels.moe.triton.operands")
    rows = [operands.Rows(sort_by_expert(torch.randint(0, 4, (tokens, 2)), 4), 2) for tokens in (1, 60)]
    assert rows[0].per_expert != rows[1].per_expert
    with batch_invariant():
        assert rows[0].per_expert == rows[1].per_expert


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [True, False])
def test_documents_are_attended_one_by_one(causal, dtype):
    lengths, device = (5, 30, 11), torch.device("cpu")
    query, key, value = (torch.randn(46, 2, 8).to(dtype) for _ in range(3))
    with batch_invariant():
        together = packed_attention(query, key, value, PackedDocuments(lengths, device), scale=0.3, causal=causal).split(lengths)
        for out, q, k, v in zip(together, *(part.split(lengths) for part in (query, key, value)), strict=True):
            alone = packed_attention(q, k, v, PackedDocuments((out.shape[0],), device), scale=0.3, causal=causal)
            assert torch.equal(out, alone)
    plain = packed_attention(query, key, value, PackedDocuments(lengths, device), scale=0.3, causal=causal)
    torch.testing.assert_close(torch.cat(together), plain)


def test_gradients_are_those_of_torch():
    x, weight = torch.randn(5, 40, requires_grad=True), torch.randn(30, 40, requires_grad=True)
    with batch_invariant():
        found = torch.autograd.grad(F.silu(F.linear(x, weight)).softmax(-1).square().sum(), (x, weight))
    wanted = torch.autograd.grad(F.silu(F.linear(x, weight)).softmax(-1).square().sum(), (x, weight))
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_it_nests_and_leaves_nothing_behind():
    x = torch.randn(100, 256)
    before = F.linear(x, WEIGHT)
    with batch_invariant():
        with batch_invariant():
            inner = F.linear(x, WEIGHT)
        assert torch.equal(F.linear(x, WEIGHT), inner)
    assert torch.equal(F.linear(x, WEIGHT), before)
