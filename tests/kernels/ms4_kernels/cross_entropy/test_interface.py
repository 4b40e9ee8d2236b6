"""The entrance: backends agree, ignored tokens cost nothing, and what does not fit is refused."""

from __future__ import annotations

import math

import pytest
import torch
from support.loss_inputs import exact_results, loss_and_gradients, loss_inputs, plain_loss

from ms4_kernels.cross_entropy import IGNORED_TARGET, interface, linear_cross_entropy


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("masked", [0.0, 0.4])
@pytest.mark.parametrize("tokens", [1, 23])
def test_equals_torch(backend, masked, tokens):
    inputs = loss_inputs(masked=masked, tokens=tokens)
    got = loss_and_gradients(lambda *args: linear_cross_entropy(*args, chunk_tokens=5, backend=backend), *inputs)
    for mine, truth in zip(got, exact_results(*inputs), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-12)  # fp64: only the order of sums differs


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_target_gives_zero_loss_and_zero_gradients(backend):
    hidden_td, head_vd, target_t = loss_inputs()
    loss = linear_cross_entropy(hidden_td, head_vd, torch.full_like(target_t, IGNORED_TARGET), backend=backend)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.count_nonzero(hidden_td.grad) == 0
    assert torch.count_nonzero(head_vd.grad) == 0


def test_non_finite_hidden_state_shows():
    hidden_td, head_vd, target_t = loss_inputs(masked=0.0)
    poisoned_td = hidden_td.detach().clone()
    poisoned_td[3] = math.nan
    assert not math.isfinite(float(linear_cross_entropy(poisoned_td, head_vd.detach(), target_t)))


def test_ignored_tokens_do_not_reach_the_head(monkeypatch):
    seen = []
    whole = interface.linear_cross_entropy_chunked
    monkeypatch.setattr(interface, "linear_cross_entropy_chunked", lambda *args: seen.append(args[0].shape[0]) or whole(*args))
    hidden_td, head_vd, target_t = loss_inputs()
    linear_cross_entropy(hidden_td, head_vd, target_t)
    assert seen == [int((target_t != IGNORED_TARGET).sum())] != [len(target_t)]


def test_misfits_are_refused():
    hidden_td, head_vd, target_t = loss_inputs()
    for args, chunk_tokens, says in [
        ((hidden_td, head_vd[:, 1:], target_t), 4, "do not fit"),
        ((hidden_td, head_vd, target_t[1:]), 4, "do not fit"),
        ((hidden_td, head_vd.float(), target_t), 4, "the head is torch.float32"),
        ((hidden_td, head_vd, target_t), 0, "a chunk of 0 tokens"),
    ]:
        with pytest.raises(ValueError, match=says):
            linear_cross_entropy(*args, chunk_tokens=chunk_tokens)
    with pytest.raises(ValueError, match="no Triton kernel"):
        linear_cross_entropy(hidden_td, head_vd, target_t, backend="triton")
    with pytest.raises((IndexError, RuntimeError)):
        linear_cross_entropy(hidden_td, head_vd, target_t.clamp(min=head_vd.shape[0]))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("masked", [0.0, 0.4])
def test_low_rank_part_counts_as_added_to_the_head(backend, masked):
    """Values and all four gradients of ``low = hidden A^T``, ``logits = hidden W^T + low B^T``, in fp64."""
    hidden_td, head_vd, target_t = loss_inputs(masked=masked)
    a_rd, up_vr = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 8), (31, 3)))
    wanted = (hidden_td, head_vd, a_rd, up_vr)
    low_rank = (hidden_td @ a_rd.T, up_vr)
    loss = linear_cross_entropy(hidden_td, head_vd, target_t, low_rank=low_rank, chunk_tokens=5, backend=backend)
    exact = plain_loss(hidden_td, head_vd + up_vr @ a_rd, target_t)
    torch.testing.assert_close(loss, exact, rtol=1e-11, atol=1e-12)
    for mine, truth in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(exact, wanted), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-12)


def test_frozen_head_gets_no_gradient_under_a_low_rank_part():
    hidden_td, head_vd, target_t = loss_inputs()
    low_tr, up_vr = torch.randn(23, 3, dtype=torch.float64), torch.randn(31, 3, dtype=torch.float64, requires_grad=True)
    linear_cross_entropy(hidden_td.detach(), head_vd.detach(), target_t, low_rank=(low_tr, up_vr)).backward()
    assert up_vr.grad is not None
    for low_rank, says in [
        ((low_tr[1:], up_vr), "does not fit"),
        ((low_tr, up_vr[:, 1:]), "does not fit"),
        ((low_tr.float(), up_vr), "float32"),
    ]:
        with pytest.raises(ValueError, match=says):
            linear_cross_entropy(hidden_td, head_vd, target_t, low_rank=low_rank)
