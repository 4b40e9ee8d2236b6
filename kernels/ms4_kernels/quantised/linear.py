"""A linear layer over a frozen quantised weight: dequantised for the product, forgotten, and dequantised again in the backward pass.

Exercise it: ``pytest tests/kernels/ms4_kernels/quantised/test_linear.py``.

Not covered: products in the quantised type itself, gradients of the weight, double backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.quantised.weight import QuantisedWeight


def quantised_linear(x: Tensor, weight: QuantisedWeight) -> Tensor:
    """Return ``x @ W^T`` with W in the type of ``x``.

    Args:
        x: floating [..., I].
        weight: one matrix [O, I], frozen.

    Returns:
        [..., O]; differentiable in ``x``. Until the backward pass only the codes and scales are held.
    """
    return _QuantisedLinear.apply(x, type(weight), *weight.tensors)  # type: ignore[return-value]


class _QuantisedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: type[QuantisedWeight], *parts: Tensor) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(*parts)
        return F.linear(x, kind(*parts).dequantise(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = ctx.saved_tensors
        dy = grad_outputs[0]
        dx = dy @ ctx.kind(*parts).dequantise(dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, *(None for _ in parts)
