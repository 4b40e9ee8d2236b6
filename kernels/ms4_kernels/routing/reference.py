"""The router after its matrix product, in plain differentiable torch: softmax, top-k, renormalised weights. Every other path must agree.

Exercise it: ``pytest tests/kernels/ms4_kernels/routing/test_reference.py``.

Shape suffixes: t tokens, e experts, k experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DENOMINATOR_FLOOR = 1e-20


def route_reference(logits_te: Tensor, top_k: int, renormalize: bool = True, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Arguments and result as for :func:`ms4_kernels.routing.route`."""
    wide = torch.promote_types(logits_te.dtype, torch.float32)
    expert_ids_tk = logits_te.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights_tk = logits_te.softmax(dim=-1, dtype=wide).gather(1, expert_ids_tk)
    if renormalize:
        weights_tk = weights_tk / (weights_tk.sum(dim=-1, keepdim=True) + _DENOMINATOR_FLOOR)
    return weights_tk * scale, expert_ids_tk
