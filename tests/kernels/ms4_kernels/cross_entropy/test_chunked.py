"""Chunks of any size against torch's cross-entropy over all logits: values, gradients, memory."""

from __future__ import annotations

import pytest
import torch
from support.loss_inputs import exact_results, loss_and_gradients, loss_inputs, plain_loss
from torch.utils._python_dispatch import TorchDispatchMode

from ms4_kernels.cross_entropy.chunked import linear_cross_entropy_chunked
from ms4_kernels.cross_entropy.rows_torch import rows_torch


def chunked(hidden_td, head_vd, target_t, chunk_tokens=7):
    return linear_cross_entropy_chunked(hidden_td, head_vd, target_t, chunk_tokens, rows_torch)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 22, 23, 24, 1000])
def test_value_and_gradients_equal_torch(chunk_tokens):
    inputs = loss_inputs(masked=0.0)
    got = loss_and_gradients(lambda *args: chunked(*args, chunk_tokens) / 3, *inputs)
    for mine, truth in zip(got, exact_results(*inputs), strict=True):
        torch.testing.assert_close(mine, truth / 3, rtol=1e-11, atol=1e-12)  # fp64: only the order of sums differs


def test_gradcheck():
    hidden_td, head_vd, target_t = loss_inputs(tokens=6, hidden=3, vocabulary=5, masked=0.0)
    assert torch.autograd.gradcheck(lambda h, w: chunked(h, w, target_t, 2), (hidden_td, head_vd))


def test_bf16_is_no_worse_than_torch_in_bf16():
    inputs = loss_inputs(torch.bfloat16, tokens=300, hidden=64, vocabulary=500, masked=0.0)
    got = loss_and_gradients(lambda *args: chunked(*args, 64), *inputs)
    assert got[0].dtype == torch.float32
    for mine, other, truth in zip(got[1:], loss_and_gradients(plain_loss, *inputs)[1:], exact_results(*inputs)[1:], strict=True):
        assert mine.dtype == torch.bfloat16
        # The bound of flash-attention's tests: twice the error of the same arithmetic done plainly.
        assert (mine.double() - truth).abs().max() <= 2 * (other.double() - truth).abs().max()


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_frozen_factor_gets_no_gradient(frozen):
    hidden_td, head_vd, target_t = loss_inputs(masked=0.0)
    (hidden_td if frozen == "hidden" else head_vd).requires_grad_(False)
    trained = head_vd if frozen == "hidden" else hidden_td
    (got,) = torch.autograd.grad(chunked(hidden_td, head_vd, target_t), (trained,))
    (expected,) = torch.autograd.grad(plain_loss(hidden_td, head_vd, target_t), (trained,))
    torch.testing.assert_close(got, expected)


def test_without_gradients_none_are_formed():
    hidden_td, head_vd, target_t = loss_inputs(masked=0.0)
    asked = []

    def rows(logits_cv, target_c, want_gradient):
        asked.append(want_gradient)
        return rows_torch(logits_cv, target_c, want_gradient)

    with torch.no_grad():
        loss = linear_cross_entropy_chunked(hidden_td, head_vd, target_t, 7, rows)
    torch.testing.assert_close(loss, plain_loss(hidden_td, head_vd, target_t).detach())
    assert asked == [False] * 4


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


def test_never_holds_all_logits():
    inputs = loss_inputs(torch.float32, tokens=256, hidden=4, vocabulary=97, masked=0.0)
    with LargestTensor() as seen:
        loss_and_gradients(lambda *args: chunked(*args, 16), *inputs)
    assert seen.elements <= 16 * 97
    with LargestTensor() as control:
        loss_and_gradients(plain_loss, *inputs)
    assert control.elements >= 256 * 97


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_only_the_two_gradients_are_saved(dtype):
    hidden_td, head_vd, target_t = loss_inputs(dtype, tokens=200, hidden=4, vocabulary=97, masked=0.0)
    loss = chunked(hidden_td, head_vd, target_t, 16)
    saved = [x for x in loss.grad_fn.saved_tensors if x is not None]  # type: ignore[union-attr]
    assert sum(x.numel() * x.element_size() for x in saved) == (200 * 4 + 97 * 4) * dtype.itemsize
