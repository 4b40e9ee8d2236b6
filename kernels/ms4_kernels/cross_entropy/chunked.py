"""Linear head and cross-entropy a chunk of tokens at a time; both gradients are formed while a chunk's logits are still there.

Exercise it: ``pytest tests/kernels/ms4_kernels/cross_entropy/test_chunked.py``.

Shape suffixes: n tokens with a target, c tokens of one chunk, d hidden size, v vocabulary, r rank of a low-rank part.
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


def linear_cross_entropy_chunked(
    hidden_nd: Tensor, head_vd: Tensor, target_n: Tensor, chunk_tokens: int, rows: Rows, low_rank: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The sum of -log softmax(hidden @ head.T)[target], in nats, with ``rows`` turning a chunk's logits into loss and gradient.

    ``low_rank`` ([n, r], [v, r]) adds the product of its two to the logits.
    """
    gradients = torch.is_grad_enabled()
    low_nr, up_vr = low_rank or (None, None)
    wanted = tuple(gradients and part is not None and part.requires_grad for part in (hidden_nd, head_vd, low_nr, up_vr))
    return _LinearCrossEntropy.apply(hidden_nd, head_vd, low_nr, up_vr, target_n, chunk_tokens, rows, wanted)  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        head_vd: Tensor,
        low_nr: Tensor | None,
        up_vr: Tensor | None,
        target_n: Tensor,
        chunk_tokens: int,
        rows: Rows,
        wanted: tuple[bool, ...],
    ) -> Tensor:
        wide = torch.promote_types(hidden_nd.dtype, torch.float32)
        grad_hidden_nd = torch.empty_like(hidden_nd) if wanted[0] else None
        # bf16 would lose the small contributions of late chunks, so the sum over chunks is kept wide and rounded once.
        grad_head_vd = torch.zeros_like(head_vd, dtype=wide) if wanted[1] else None
        grad_low_nr = torch.empty_like(low_nr) if low_nr is not None and wanted[2] else None
        grad_up_vr = torch.zeros_like(up_vr, dtype=wide) if up_vr is not None and wanted[3] else None
        total = torch.zeros((), dtype=wide, device=hidden_nd.device)
        for start in range(0, hidden_nd.shape[0], chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            hidden_cd = hidden_nd[chunk]
            logits_cv = product_nt(hidden_cd, head_vd)
            if low_nr is not None and up_vr is not None:
                logits_cv.addmm_(low_nr[chunk], up_vr.t())
            loss, grad_logits_cv = rows(logits_cv, target_n[chunk], any(wanted))
            total += loss
            if grad_logits_cv is None:
                continue
            if grad_hidden_nd is not None:
                grad_hidden_nd[chunk] = product_nn(grad_logits_cv, head_vd)
            if grad_head_vd is not None:
                add_product_tn(grad_head_vd, grad_logits_cv, hidden_cd)
            if grad_low_nr is not None and up_vr is not None:
                grad_low_nr[chunk] = grad_logits_cv @ up_vr
            if grad_up_vr is not None and low_nr is not None:
                add_product_tn(grad_up_vr, grad_logits_cv, low_nr[chunk])
        sums = ((grad_head_vd, head_vd), (grad_up_vr, up_vr))
        grad_head_vd, grad_up_vr = (None if sum_ is None or like is None else sum_.to(like.dtype) for sum_, like in sums)
        ctx.save_for_backward(grad_hidden_nd, grad_head_vd, grad_low_nr, grad_up_vr)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = grad_outputs[0]
        scaled = (None if gradient is None else gradient * scale.to(gradient.dtype) for gradient in ctx.saved_tensors)
        return *scaled, *(None,) * 4
