"""Chunked cross-entropy against torch's own, in values, gradients and memory."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from ms4_train.model.network import LanguageHead
from ms4_train.training.loss import IGNORED_TARGET, linear_cross_entropy, next_token_loss


def make_inputs(dtype=torch.float64, tokens=23, hidden=8, vocabulary=31, masked=0.4):
    generator = torch.Generator().manual_seed(5)
    hidden_td = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head_vd = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    target_t = torch.randint(0, vocabulary, (tokens,), generator=generator)
    target_t[torch.rand(tokens, generator=generator) < masked] = IGNORED_TARGET
    return hidden_td, head_vd, target_t


def plain_loss(hidden_td, head_vd, target_t):
    return cross_entropy((hidden_td @ head_vd.T).to(torch.promote_types(hidden_td.dtype, torch.float32)), target_t, reduction="sum")


@pytest.mark.parametrize("chunk_tokens", [1, 4, 7, 1000])
@pytest.mark.parametrize("masked", [0.0, 0.4])
def test_value_and_gradients_equal_torch(chunk_tokens, masked):
    hidden_td, head_vd, target_t = make_inputs(masked=masked)
    expected = torch.autograd.grad(plain_loss(hidden_td, head_vd, target_t) / 3, (hidden_td, head_vd))
    loss = linear_cross_entropy(hidden_td, head_vd, target_t, chunk_tokens=chunk_tokens)
    got = torch.autograd.grad(loss / 3, (hidden_td, head_vd))
    # fp64: only the order of sums differs.
    torch.testing.assert_close(loss, plain_loss(hidden_td, head_vd, target_t), rtol=1e-12, atol=0)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-12)


def test_gradcheck():
    hidden_td, head_vd, target_t = make_inputs(tokens=6, hidden=3, vocabulary=5)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, target_t, chunk_tokens=2), (hidden_td, head_vd))


def test_bf16_is_no_worse_than_torch_in_bf16():
    hidden_td, head_vd, target_t = make_inputs(torch.bfloat16, tokens=300, hidden=64, vocabulary=500)
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in (hidden_td, head_vd)]
    exact = torch.autograd.grad(plain_loss(*exact_inputs, target_t), exact_inputs)
    theirs = torch.autograd.grad(plain_loss(hidden_td, head_vd, target_t), (hidden_td, head_vd))
    loss = linear_cross_entropy(hidden_td, head_vd, target_t, chunk_tokens=64)
    assert loss.dtype == torch.float32
    ours = torch.autograd.grad(loss, (hidden_td, head_vd))
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        # The bound of flash-attention's tests: twice the error of the same arithmetic done plainly.
        assert (mine.double() - truth).abs().max() <= 2 * (other.double() - truth).abs().max()


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_frozen_factor_gets_no_gradient(frozen):
    hidden_td, head_vd, target_t = make_inputs()
    (hidden_td if frozen == "hidden" else head_vd).requires_grad_(False)
    trained = head_vd if frozen == "hidden" else hidden_td
    (got,) = torch.autograd.grad(linear_cross_entropy(hidden_td, head_vd, target_t, chunk_tokens=5), (trained,))
    (expected,) = torch.autograd.grad(plain_loss(hidden_td, head_vd, target_t), (trained,))
    torch.testing.assert_close(got, expected)


def test_no_target_gives_zero_loss_and_zero_gradients():
    hidden_td, head_vd, target_t = make_inputs()
    loss = linear_cross_entropy(hidden_td, head_vd, torch.full_like(target_t, IGNORED_TARGET))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.count_nonzero(hidden_td.grad) == 0
    assert torch.count_nonzero(head_vd.grad) == 0


def test_non_finite_hidden_state_shows():
    hidden_td, head_vd, target_t = make_inputs(masked=0.0)
    poisoned_td = hidden_td.detach().clone()
    poisoned_td[3] = math.nan
    assert not math.isfinite(float(linear_cross_entropy(poisoned_td, head_vd.detach(), target_t)))


def test_never_holds_all_logits():
    class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
            return result

    hidden_td, head_vd, target_t = make_inputs(torch.float32, tokens=256, hidden=4, vocabulary=97)
    with LargestTensor() as seen:
        linear_cross_entropy(hidden_td, head_vd, target_t, chunk_tokens=16).backward()
    assert seen.elements <= 16 * 97
    with LargestTensor() as control:
        plain_loss(hidden_td, head_vd, target_t).backward()
    assert control.elements >= 256 * 97


def test_head_module_is_called_once_whatever_the_chunks():
    hidden_td, head_vd, target_t = make_inputs(torch.float32)
    head = LanguageHead(8, 31, bias=False)
    head.weight.data.copy_(head_vd.detach())
    calls = []
    head.register_forward_pre_hook(lambda module, inputs: calls.append(module))  # where ZeRO 3 gathers the weight
    loss = next_token_loss(head, hidden_td, target_t, chunk_tokens=4)
    assert len(calls) == 1
    assert type(loss.grad_fn).__name__ == "_LinearCrossEntropyBackward"
    torch.testing.assert_close(loss, plain_loss(hidden_td, head_vd, target_t))
    torch.testing.assert_close(head(hidden_td), hidden_td @ head_vd.T)
