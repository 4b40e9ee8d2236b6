"""The router after its matrix product: softmax, top-k, renormalised weights.

Plain torch operations on any device; k passes of argmax were measured as fast as one topk on a CPU, and unlike topk they define ties.
Exercise it: ``pytest tests/kernels/ms4_kernels/routing``.

Shape suffixes: t tokens, e experts, k experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DENOMINATOR_FLOOR = 1e-20


def top_k_lower_id(scores_te: Tensor, top_k: int) -> Tensor:
    """Return the ids of the ``top_k`` largest scores of each token, largest first; equal scores go to the lower id.

    ``torch.topk`` leaves ties unspecified, and two ranks (or two devices) that break them differently compute different models.

    Args:
        scores_te: [T, E], every score above -1 (probabilities).
        top_k: how many ids, at most E.

    Returns:
        int64 [T, K].
    """
    if not 0 < top_k <= scores_te.shape[1]:
        raise ValueError(f"top_k must lie in 1..{scores_te.shape[1]}, got {top_k}")
    remaining_te = scores_te.detach().clone()
    chosen = []
    for _ in range(top_k):
        chosen.append(remaining_te.argmax(dim=-1, keepdim=True))  # argmax returns the first of equal maxima
        remaining_te.scatter_(1, chosen[-1], -1.0)
    return torch.cat(chosen, dim=-1)


def route(logits_te: Tensor, top_k: int, renormalize: bool = True, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Choose the experts of each token (spec section 2.1).

    Args:
        logits_te: [T, E] router logits. Half precision is widened to fp32: near-ties would otherwise depend on rounding.
        top_k: experts per token.
        renormalize: divide the chosen probabilities by their sum + 1e-20.
        scale: factor on the weights afterwards (``routed_scaling_factor``).

    Returns:
        (weights_tk, expert_ids_tk): fp32 (fp64 for fp64 logits) [T, K], differentiable in the logits, and int64 [T, K], likeliest first.
    """
    wide = torch.promote_types(logits_te.dtype, torch.float32)
    probabilities_te = logits_te.softmax(dim=-1, dtype=wide)
    expert_ids_tk = top_k_lower_id(probabilities_te, top_k)
    weights_tk = probabilities_te.gather(1, expert_ids_tk)
    if renormalize:
        weights_tk = weights_tk / (weights_tk.sum(dim=-1, keepdim=True) + _DENOMINATOR_FLOOR)
    return weights_tk * scale, expert_ids_tk
