"""RMSNorm by the compiled kernels: one pass forward and one backward, where torch needs five and a dozen.

Exercise it: ``pytest tests/kernels/ms4_kernels/native/test_rms.py``.

Shape suffixes: t rows, d columns.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.native.library import library, readable


def serves_rms(x: Tensor, weight_d: Tensor) -> bool:
    """Whether both are plain fp32 on a CPU and fit, outside autocasting, and there is a library."""
    return (
        x.dtype == weight_d.dtype == torch.float32
        and x.ndim == 2
        and weight_d.shape == x.shape[1:]
        and readable(x, weight_d)
        and x.stride(1) == 1
        and weight_d.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and library() is not None
    )


def rms_norm(x_td: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """Return ``w * x / sqrt(mean(x^2) + eps)`` [T, d], differentiable once; for tensors that :func:`serves_rms` takes."""
    return _RmsNorm.apply(x_td, weight_d, eps)  # type: ignore[return-value]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_td: Tensor, weight_d: Tensor, eps: float) -> Tensor:
        y_td, factor_t = torch.empty(x_td.shape), torch.empty(x_td.shape[0])
        _call("ms4_rms_forward", x_td, (x_td, x_td.stride(0), weight_d, eps, y_td, factor_t))
        ctx.save_for_backward(x_td, weight_d, factor_t)
        return y_td

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_td, weight_d, factor_t = ctx.saved_tensors
        dx_td = torch.empty(x_td.shape) if ctx.needs_input_grad[0] else None
        dweight_d = torch.empty(weight_d.shape) if ctx.needs_input_grad[1] else None
        arguments = (grad_outputs[0].contiguous(), x_td, x_td.stride(0), weight_d, factor_t, dx_td, dweight_d)
        if _call("ms4_rms_backward", x_td, arguments):
            raise MemoryError("no memory for the parts of a weight's gradient")
        return dx_td, dweight_d, None


def _call(name: str, x_td: Tensor, arguments: tuple[Tensor | int | float | None, ...]) -> int:
    kinds: list[Any] = [ctypes.c_int32(size) for size in x_td.shape]
    for argument in arguments:
        if isinstance(argument, int):
            kinds.append(ctypes.c_int64(argument))
        elif isinstance(argument, float):
            kinds.append(ctypes.c_float(argument))
        else:
            kinds.append(None if argument is None else ctypes.c_void_p(argument.data_ptr()))
    return getattr(library(), name)(*kinds, ctypes.c_int32(torch.get_num_threads()))
