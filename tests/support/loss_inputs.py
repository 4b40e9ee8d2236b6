"""Hidden states, a head and targets, and what torch's own cross-entropy over all logits makes of them."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from ms4_kernels.cross_entropy import IGNORED_TARGET


def loss_inputs(dtype=torch.float64, tokens=23, hidden=8, vocabulary=31, masked=0.4):
    """[T, d] and [V, d] that want gradients, and [T] targets of which a share is ignored."""
    generator = torch.Generator().manual_seed(5)
    hidden_td = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head_vd = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    target_t = torch.randint(0, vocabulary, (tokens,), generator=generator)
    target_t[torch.rand(tokens, generator=generator) < masked] = IGNORED_TARGET
    return hidden_td, head_vd, target_t


def plain_loss(hidden_td, head_vd, target_t):
    """Torch's summed cross-entropy over all logits, in fp32 at least."""
    logits_tv = (hidden_td @ head_vd.T).to(torch.promote_types(hidden_td.dtype, torch.float32))
    return cross_entropy(logits_tv, target_t, ignore_index=IGNORED_TARGET, reduction="sum")


def loss_and_gradients(loss_of, hidden_td, head_vd, target_t):
    """[loss, gradient of hidden, gradient of head]."""
    loss = loss_of(hidden_td, head_vd, target_t)
    return [loss.detach(), *torch.autograd.grad(loss, (hidden_td, head_vd))]


def exact_results(hidden_td, head_vd, target_t):
    """``loss_and_gradients`` of torch's cross-entropy in fp64."""
    return loss_and_gradients(plain_loss, *(x.detach().double().requires_grad_() for x in (hidden_td, head_vd)), target_t)


def rows_inputs(dtype, tokens=5, vocabulary=37, spread=3.0):
    """[C, V] logits, [C] targets, and the loss and gradient of each row by torch in fp64."""
    logits_cv = (torch.randn(tokens, vocabulary, dtype=torch.float64) * spread).to(dtype)
    target_c = torch.randint(0, vocabulary, (tokens,))
    return logits_cv, target_c, *rows_results(logits_cv.double(), target_c)


def rows_results(logits_cv, target_c):
    """(summed loss, gradient of the logits) by torch's cross-entropy in the type given, at least fp32 inside."""
    logits_cv = logits_cv.detach().clone().requires_grad_()
    loss = cross_entropy(logits_cv.to(torch.promote_types(logits_cv.dtype, torch.float32)), target_c, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss, logits_cv)
