"""A linear layer without bias whose three products are the compiled ones where they serve; otherwise torch's own.

Exercise it: ``pytest tests/kernels/ms4_kernels/native/test_linear.py``.

Shape suffixes: t rows, o outputs, i inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.native.library import library
from ms4_kernels.native.matmul import add_product_tn, product_nn, product_nt

_LEAST_ROWS = 64
"""Below it the weight is packed for too few rows."""
_LEAST_WORK = 1 << 20


def linear(x: Tensor, weight_oi: Tensor) -> Tensor:
    """Return ``x W^T`` [..., O], for ``x`` [..., I]; as ``F.linear``, but differentiable once where the compiled products serve."""
    rows = x.numel() // max(x.shape[-1], 1)
    if not serves(x, weight_oi) or rows < _LEAST_ROWS or rows * weight_oi.numel() < _LEAST_WORK:
        return F.linear(x, weight_oi)
    return _Linear.apply(x, weight_oi)  # type: ignore[return-value]


def serves(x: Tensor, weight_oi: Tensor) -> bool:
    """Whether both are contiguous fp32 on a CPU, outside autocasting, and there is a library."""
    return (
        x.device.type == weight_oi.device.type == "cpu"
        and x.dtype == weight_oi.dtype == torch.float32
        and x.is_contiguous()
        and weight_oi.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and library() is not None
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_oi: Tensor) -> Tensor:
        # As little as the gradients need is kept: with a frozen weight no input, with an input that wants none no weight.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight_oi if ctx.needs_input_grad[0] else None)
        return product_nt(x.reshape(-1, x.shape[-1]), weight_oi).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight_oi = ctx.saved_tensors
        dy = grad_outputs[0]
        dy_to = dy.reshape(-1, dy.shape[-1]).contiguous()
        dx = dweight_oi = None
        if weight_oi is not None:
            dx = product_nn(dy_to, weight_oi).view(*dy.shape[:-1], -1)
        if x is not None:
            dweight_oi = torch.zeros(dy.shape[-1], x.shape[-1])
            add_product_tn(dweight_oi, dy_to, x.reshape(-1, x.shape[-1]))
        return dx, dweight_oi
