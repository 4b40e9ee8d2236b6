"""The rotation of the last lanes of every head, by the compiled kernels: one pass, where torch splits, flips, multiplies and joins.

Exercise it: ``pytest tests/kernels/ms4_kernels/native/test_rotary.py``.

Shape suffixes: t tokens, h heads, x lanes of a head, p lanes that turn.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.native.library import library, readable


def serves_rotation(x_thx: Tensor, cos_tp: Tensor, signed_sin_tp: Tensor) -> bool:
    """Whether all are plain contiguous fp32 on a CPU and fit, and there is a library."""
    tables = (cos_tp, signed_sin_tp)
    return (
        x_thx.ndim == 3
        and all(part.dtype == torch.float32 and part.is_contiguous() for part in (x_thx, *tables))
        and all(table.ndim == 2 and table.shape[0] == x_thx.shape[0] and table.shape[1] <= x_thx.shape[2] for table in tables)
        and readable(x_thx, *tables)
        and library() is not None
    )


def rotate_tail(x_thx: Tensor, cos_tp: Tensor, signed_sin_tp: Tensor) -> Tensor:
    """Rotate the pairs of the last P lanes of each head, [T, h, x]; differentiable once in ``x``. See :func:`serves_rotation`.

    Args:
        x_thx: queries.
        cos_tp: cosines, each in both lanes of its pair.
        signed_sin_tp: sines, likewise, negative in the first lane.
    """
    return _RotateTail.apply(x_thx, cos_tp, signed_sin_tp)  # type: ignore[return-value]


class _RotateTail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_thx: Tensor, cos_tp: Tensor, signed_sin_tp: Tensor) -> Tensor:
        ctx.save_for_backward(cos_tp, signed_sin_tp)
        return _rotated(x_thx, cos_tp, signed_sin_tp, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos_tp, signed_sin_tp = ctx.saved_tensors
        return _rotated(grad_outputs[0].contiguous(), cos_tp, signed_sin_tp, -1.0), None, None  # a rotation's transpose turns back


def _rotated(x_thx: Tensor, cos_tp: Tensor, signed_sin_tp: Tensor, sign: float) -> Tensor:
    out_thx = torch.empty(x_thx.shape)
    arguments: list[Any] = [ctypes.c_int32(size) for size in (*x_thx.shape, cos_tp.shape[1])]
    arguments += [ctypes.c_void_p(part.data_ptr()) for part in (x_thx, cos_tp, signed_sin_tp)]
    arguments += [ctypes.c_float(sign), ctypes.c_void_p(out_thx.data_ptr()), ctypes.c_int32(torch.get_num_threads())]
    loaded = library()
    assert loaded is not None
    loaded.ms4_rotate_tail(*arguments)
    return out_thx
