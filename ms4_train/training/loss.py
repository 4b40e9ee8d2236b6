"""Cross-entropy of the next token, straight from hidden states, without ever holding all logits.

Tokens without a target are dropped before the product with the head, the rest goes through it ``chunk_tokens`` at a time, and the
gradients of both factors are formed in the forward pass while a chunk's logits are still there. The training loop calls
``next_token_loss``.
Exercise it: ``pytest tests/ms4_train/training/test_loss.py``.

Shapes: t = tokens of the batch, n = tokens with a target, c = tokens of one chunk, d = hidden size, v = vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ms4_train.model.network import LanguageHead

IGNORED_TARGET = -100


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(hidden @ head.T)[target]; the gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, head_vd: Tensor, target_n: Tensor, chunk_tokens: int, want_hidden: bool, want_head: bool
    ) -> Tensor:
        wide = torch.promote_types(hidden_nd.dtype, torch.float32)
        grad_hidden_nd = torch.empty_like(hidden_nd) if want_hidden else None
        # bf16 would lose the small contributions of late chunks, so the sum over chunks is kept wide and rounded once.
        grad_head_vd = torch.zeros_like(head_vd, dtype=wide) if want_head else None
        total = torch.zeros((), dtype=wide, device=hidden_nd.device)
        for start in range(0, hidden_nd.shape[0], chunk_tokens):
            hidden_cd = hidden_nd[start : start + chunk_tokens]
            target_c1 = target_n[start : start + chunk_tokens, None]
            logits_cv = (hidden_cd @ head_vd.T).to(wide)
            log_norm_c1 = torch.logsumexp(logits_cv, dim=1, keepdim=True)
            total += (log_norm_c1 - logits_cv.gather(1, target_c1)).sum()
            if grad_hidden_nd is None and grad_head_vd is None:
                continue
            grad_logits_cv = logits_cv.sub_(log_norm_c1).exp_()  # in place: one chunk of logits is all that ever exists
            grad_logits_cv.scatter_add_(1, target_c1, torch.full_like(log_norm_c1, -1.0))
            narrow_cv = grad_logits_cv.to(hidden_nd.dtype)
            if grad_hidden_nd is not None:
                torch.mm(narrow_cv, head_vd, out=grad_hidden_nd[start : start + chunk_tokens])
            if grad_head_vd is not None:
                if wide == hidden_nd.dtype:
                    grad_head_vd.addmm_(narrow_cv.T, hidden_cd)
                else:
                    grad_head_vd += narrow_cv.T @ hidden_cd
        ctx.save_for_backward(grad_hidden_nd, None if grad_head_vd is None else grad_head_vd.to(head_vd.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        grad_hidden_nd, grad_head_vd = ctx.saved_tensors
        return (
            None if grad_hidden_nd is None else grad_hidden_nd * scale.to(grad_hidden_nd.dtype),
            None if grad_head_vd is None else grad_head_vd * scale.to(grad_head_vd.dtype),
            *(None,) * 4,
        )


def linear_cross_entropy(hidden_td: Tensor, head_vd: Tensor, target_t: Tensor, *, chunk_tokens: int = 1024) -> Tensor:
    """Sum of the negative log likelihoods of the targets, in nats.

    Args:
        hidden_td: [T, d] hidden states after the final norm.
        head_vd: [V, d] weight of the head, of the same dtype.
        target_t: [T] int64; tokens with ``IGNORED_TARGET`` carry no loss and cost nothing.
        chunk_tokens: tokens whose [chunk, V] logits exist at once.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs). It is a sum: the caller divides by the trained tokens of the whole optimizer step.
        A batch without targets gives 0 and zero gradients, so that every rank can take part in the backward pass.
    """
    hidden_nd, target_n = _keep_trained(hidden_td, target_t)
    gradients = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(
        hidden_nd, head_vd, target_n, chunk_tokens, gradients and hidden_nd.requires_grad, gradients and head_vd.requires_grad
    )


def next_token_loss(head: LanguageHead, hidden_td: Tensor, target_t: Tensor, *, chunk_tokens: int = 1024) -> Tensor:
    """``linear_cross_entropy`` through the head module [V, d], in one call of it.

    One call whatever the number of chunks: under ZeRO 3 the call is collective (it gathers the head's weight), and ranks differ in chunks.
    """

    def loss(hidden_td: Tensor, head_vd: Tensor) -> Tensor:
        return linear_cross_entropy(hidden_td, head_vd, target_t, chunk_tokens=chunk_tokens)

    return head(hidden_td, loss)


def _keep_trained(hidden_td: Tensor, target_t: Tensor) -> tuple[Tensor, Tensor]:
    """([n, d], [n]): the tokens that have a target."""
    index_n = (target_t != IGNORED_TARGET).nonzero().squeeze(1)
    if index_n.shape[0] == target_t.shape[0]:
        return hidden_td, target_t
    return hidden_td.index_select(0, index_n), target_t.index_select(0, index_n)
