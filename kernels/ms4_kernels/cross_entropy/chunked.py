"""Linear head and cross-entropy a chunk of tokens at a time; both gradients are formed while a chunk's logits are still there.

Exercise it: ``pytest tests/kernels/ms4_kernels/cross_entropy/test_chunked.py``.

Shape suffixes: n tokens with a target, c tokens of one chunk, d hidden size, v vocabulary; r rows, i inputs, o outputs of any
linear map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.native.matmul import add_product_tn, product_nn, product_nt

Rows = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
"""(logits [C, V], targets [C], whether a gradient is wanted) -> (summed loss, softmax - onehot); may overwrite the logits."""


def linear_cross_entropy_chunked(hidden_nd: Tensor, head_vd: Tensor, target_n: Tensor, chunk_tokens: int, rows: Rows) -> Tensor:
    """The sum of -log softmax(hidden @ head.T)[target], in nats, with ``rows`` turning a chunk's logits into loss and gradient."""
    gradients = torch.is_grad_enabled()
    wanted = (gradients and hidden_nd.requires_grad, gradients and head_vd.requires_grad)
    return _LinearCrossEntropy.apply(hidden_nd, head_vd, target_n, chunk_tokens, rows, wanted)  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, head_vd: Tensor, target_n: Tensor, chunk_tokens: int, rows: Rows, wanted: tuple[bool, bool]
    ) -> Tensor:
        wide = torch.promote_types(hidden_nd.dtype, torch.float32)
        grad_hidden_nd = torch.empty_like(hidden_nd) if wanted[0] else None
        # bf16 would lose the small contributions of late chunks, so the sum over chunks is kept wide and rounded once.
        grad_head_vd = torch.zeros_like(head_vd, dtype=wide) if wanted[1] else None
        total = torch.zeros((), dtype=wide, device=hidden_nd.device)
        for start in range(0, hidden_nd.shape[0], chunk_tokens):
            hidden_cd = hidden_nd[start : start + chunk_tokens]
            loss, grad_logits_cv = rows(product_nt(hidden_cd, head_vd), target_n[start : start + chunk_tokens], any(wanted))
            total += loss
            if grad_logits_cv is None:
                continue
            if grad_hidden_nd is not None:
                grad_hidden_nd[start : start + chunk_tokens] = product_nn(grad_logits_cv, head_vd)
            if grad_head_vd is not None:
                add_product_tn(grad_head_vd, grad_logits_cv, hidden_cd)
        ctx.save_for_backward(grad_hidden_nd, None if grad_head_vd is None else grad_head_vd.to(head_vd.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = grad_outputs[0]
        grad_hidden_nd, grad_head_vd = ctx.saved_tensors
        return (
            None if grad_hidden_nd is None else grad_hidden_nd * scale.to(grad_hidden_nd.dtype),
            None if grad_head_vd is None else grad_head_vd * scale.to(grad_head_vd.dtype),
            *(None,) * 4,
        )
