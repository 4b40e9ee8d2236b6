"""Linear layers without bias, plain and with a low-rank update, whose products are the compiled ones where they serve.

Exercise it: ``pytest tests/kernels/ms4_kernels/native/test_linear.py``.

Shape suffixes: t rows, o outputs, i inputs, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.invariant.switch import is_on
from ms4_kernels.native.library import library, readable
from ms4_kernels.native.matmul import product_nn, product_nt, product_tn, run_lora

_LEAST_ROWS = 64
"""Below it the weight is packed for too few rows."""
_LEAST_WORK = 1 << 20


def linear(x: Tensor, weight_oi: Tensor) -> Tensor:
    """Return ``x W^T`` [..., O], for ``x`` [..., I]; as ``F.linear``, but differentiable once where the compiled products serve."""
    rows = x.numel() // max(x.shape[-1], 1)
    if not serves(x, weight_oi) or rows < _LEAST_ROWS or rows * weight_oi.numel() < _LEAST_WORK:
        return F.linear(x, weight_oi)
    return _Linear.apply(x.contiguous(), weight_oi)  # type: ignore[return-value]


def serves(x: Tensor, weight_oi: Tensor) -> bool:
    """Whether both are plain fp32 on a CPU and fit, the weight contiguous, outside autocasting, and there is a library."""
    return (
        x.dtype == weight_oi.dtype == torch.float32
        and weight_oi.ndim == 2
        and x.shape[-1] == weight_oi.shape[1]  # if not, torch says so
        and readable(x, weight_oi)
        and weight_oi.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and library() is not None
    )


def lora_linear(x: Tensor, weight_oi: Tensor, a_ri: Tensor, b_or: Tensor, scale: float) -> Tensor:
    """Return ``x W^T + scale * (x A^T) B^T`` [..., O], every product made while its rows are in the cache; differentiable once.

    All fp32 and contiguous on a CPU: :func:`serves_lora` says whether.
    """
    return _LoraLinear.apply(x.contiguous(), weight_oi, a_ri, b_or, scale)  # type: ignore[return-value]


def serves_lora(x: Tensor, weight_oi: Tensor, a_ri: Tensor, b_or: Tensor) -> bool:
    """Whether :func:`lora_linear` serves, and pays, for these; never inside ``batch_invariant()``, for it would depend on the rows."""
    if is_on():
        return False
    rows = x.numel() // max(x.shape[-1], 1)
    enough = rows >= _LEAST_ROWS and rows * weight_oi.numel() >= _LEAST_WORK
    factors = all(factor.dtype == torch.float32 and factor.is_contiguous() for factor in (a_ri, b_or)) and readable(a_ri, b_or)
    rank = a_ri.shape[0]
    fit = a_ri.shape == (rank, weight_oi.shape[1]) and b_or.shape == (weight_oi.shape[0], rank)
    return enough and factors and fit and serves(x, weight_oi)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_oi: Tensor, a_ri: Tensor, b_or: Tensor, scale: float) -> Tensor:
        x_ti = x.reshape(-1, x.shape[-1])
        sizes = (x_ti.shape[0], weight_oi.shape[0], weight_oi.shape[1], a_ri.shape[0])
        y_to, low_tr = torch.empty(sizes[0], sizes[1]), torch.empty(sizes[0], sizes[3])
        run_lora("ms4_lora_forward", sizes, (x_ti, weight_oi, a_ri, b_or), scale, (y_to, low_tr))
        ctx.save_for_backward(x, weight_oi, a_ri, b_or, low_tr)
        ctx.sizes, ctx.scale = sizes, scale
        return y_to.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight_oi, a_ri, b_or, low_tr = ctx.saved_tensors
        dy_to = grad_outputs[0].reshape(-1, weight_oi.shape[0]).contiguous()
        x_ti = x.reshape(-1, x.shape[-1])
        dx_ti = torch.empty(x_ti.shape) if ctx.needs_input_grad[0] else None
        dlow_tr = torch.empty(low_tr.shape)
        run_lora("ms4_lora_backward", ctx.sizes, (dy_to, weight_oi, a_ri, b_or), ctx.scale, (dx_ti, dlow_tr))
        dweight_oi = product_tn(dy_to, x_ti) if ctx.needs_input_grad[1] else None
        da_ri = product_tn(dlow_tr, x_ti) if ctx.needs_input_grad[2] else None
        db_or = product_tn(dy_to, low_tr, ctx.scale) if ctx.needs_input_grad[3] else None
        return None if dx_ti is None else dx_ti.view(x.shape), dweight_oi, da_ri, db_or, None


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
            dweight_oi = product_tn(dy_to, x.reshape(-1, x.shape[-1]))
        return dx, dweight_oi
