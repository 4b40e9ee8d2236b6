"""The router after its matrix product, for CPUs: a choice by k vectorised passes, and a backward written by hand.

Renormalised weights are the softmax of the chosen logits alone: what the others contribute to the softmax cancels in the division, and the
floor of 1e-20 under the sum is less than half a unit in its last place, since the likeliest expert has at least 1 / E. So neither direction
needs the probabilities of all experts: forward keeps weights and ids [T, K], and the gradient is zero outside the chosen experts.
It is plain torch and numpy. Exercise it: ``pytest tests/kernels/ms4_kernels/routing/test_cpu.py``.

Shape suffixes: t tokens, e experts, k experts per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def route_cpu(logits_te: Tensor, top_k: int, renormalize: bool = True, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Arguments and result as for :func:`ms4_kernels.routing.route`."""
    return _Route.apply(logits_te, top_k, renormalize, scale)  # type: ignore[return-value]


def top_k_lower_id(scores_te: Tensor, top_k: int) -> Tensor:
    """Return the ids of the ``top_k`` largest scores of each row, largest first; equal scores go to the lower id.

    ``torch.topk`` leaves ties unspecified, and two ranks (or two devices) that break them differently compute different models. It is slow
    besides: 2.5 ms for [2048, 128] on one thread, where a pass of numpy's argmax takes 0.05 and one of torch's 0.32.

    Args:
        scores_te: [T, E], fp32 or fp64. NaN counts as largest, and the ids are distinct even so.
        top_k: how many ids, at most E.

    Returns:
        int64 [T, K].

    Raises:
        ValueError: ``top_k`` lies outside ``1 .. E``.
    """
    if not 0 < top_k <= scores_te.shape[1]:
        raise ValueError(f"top_k must lie in 1..{scores_te.shape[1]}, got {top_k}")
    # A copy in which nothing is as small as the mark of a chosen one.
    remaining_te = scores_te.detach().clamp(min=torch.finfo(scores_te.dtype).min)
    ids_tk = torch.empty(scores_te.shape[0], top_k, dtype=torch.int64, device=scores_te.device)
    for k in range(top_k):
        if remaining_te.device.type == "cpu":
            np.argmax(remaining_te.numpy(), axis=1, out=ids_tk.numpy()[:, k])  # the first of equal maxima, as torch's
        else:
            torch.argmax(remaining_te, dim=1, out=ids_tk[:, k])
        if k + 1 < top_k:
            remaining_te.scatter_(1, ids_tk[:, k : k + 1], -torch.inf)
    return ids_tk


class _Route(torch.autograd.Function):
    """Inputs 0 logits, then top_k, renormalize, scale; outputs weights and ids."""

    @staticmethod
    def forward(ctx: Any, logits_te: Tensor, top_k: int, renormalize: bool, scale: float) -> tuple[Tensor, Tensor]:
        wide_te = logits_te.to(torch.promote_types(logits_te.dtype, torch.float32))
        ids_tk = top_k_lower_id(wide_te, top_k)
        if renormalize:
            probabilities_te = None
            chosen_tk = wide_te.gather(1, ids_tk)  # largest first; torch's own softmax takes 160 us for 2048 rows as short as these
            weights_tk = (chosen_tk - chosen_tk[:, :1]).exp_()
            weights_tk /= weights_tk.sum(dim=-1, keepdim=True)
        else:
            probabilities_te = wide_te.softmax(dim=-1)
            weights_tk = probabilities_te.gather(1, ids_tk)
        if scale != 1:
            weights_tk *= scale
        ctx.mark_non_differentiable(ids_tk)
        ctx.save_for_backward(weights_tk, ids_tk, probabilities_te)
        ctx.scale, ctx.shape, ctx.dtype = scale, logits_te.shape, logits_te.dtype
        return weights_tk, ids_tk

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weights_tk, ids_tk, probabilities_te = ctx.saved_tensors
        # With q = weights / scale: dlogit = q * (scale * dw - sum(scale * dw * q)) = weights * dw - q * sum(dw * weights).
        parts_tk = weights_tk * grad_outputs[0]
        inverse_scale = 1 / ctx.scale if ctx.scale else 0.0
        sum_t1 = parts_tk.sum(dim=-1, keepdim=True)
        if probabilities_te is None:
            parts_tk.addcmul_(weights_tk, sum_t1, value=-inverse_scale)
            dlogits_te = parts_tk.new_zeros(ctx.shape).scatter_(1, ids_tk, parts_tk)
        else:
            dlogits_te = (probabilities_te * -sum_t1).scatter_add_(1, ids_tk, parts_tk)
        return dlogits_te.to(ctx.dtype), None, None, None
