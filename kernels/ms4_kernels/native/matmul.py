"""The three dense products of a linear layer, by the compiled kernels where they serve, else by torch.

They are what ``benchmarks/train_step.py`` calls bare products, done faster than by ``torch.mm``; and like all compiled kernels they give a
row the same result whatever the number of rows and threads.
Exercise it: ``pytest tests/kernels/ms4_kernels/native/test_matmul.py``.

Shape suffixes: t rows, o outputs, i inputs.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ms4_kernels.invariant.switch import is_on
from ms4_kernels.native.library import library, readable

_LEAST = 1 << 20  # products of two numbers below which describing the call costs more than it saves


def product_nt(x_ti: Tensor, weight_oi: Tensor) -> Tensor:
    """Return ``x W^T`` [T, O]."""
    if not _serves(x_ti, weight_oi, (1, 1), x_ti.shape[0] * weight_oi.numel()):
        return x_ti @ weight_oi.t()
    out_to = torch.empty(x_ti.shape[0], weight_oi.shape[0])
    _run("ms4_matmul_nt", (*out_to.shape, x_ti.shape[1]), (x_ti, weight_oi, out_to))
    return out_to


def product_nn(dy_to: Tensor, weight_oi: Tensor) -> Tensor:
    """Return ``dy W`` [T, I]."""
    if not _serves(dy_to, weight_oi, (1, 0), dy_to.shape[0] * weight_oi.numel()):
        return dy_to @ weight_oi
    out_ti = torch.empty(dy_to.shape[0], weight_oi.shape[1])
    _run("ms4_matmul_nn", (*out_ti.shape, dy_to.shape[1]), (dy_to, weight_oi, out_ti))
    return out_ti


def product_tn(dy_to: Tensor, x_ti: Tensor, alpha: float = 1.0) -> Tensor:
    """Return ``alpha * dy^T x`` [O, I]."""
    if not _serves(dy_to, x_ti, (0, 0), dy_to.numel() * x_ti.shape[1]):
        return (dy_to.t() @ x_ti).mul_(alpha)
    out_oi = torch.empty(dy_to.shape[1], x_ti.shape[1])
    _run("ms4_matmul_tn", (*out_oi.shape, dy_to.shape[0]), (dy_to, x_ti, out_oi), alpha, adds=False)
    return out_oi


def add_product_tn(total_oi: Tensor, dy_to: Tensor, x_ti: Tensor) -> None:
    """Add ``dy^T x`` to ``total``, which may be of a wider type."""
    if (
        total_oi.is_contiguous()
        and total_oi.dtype == dy_to.dtype
        and readable(total_oi)
        and _serves(dy_to, x_ti, (0, 0), dy_to.numel() * x_ti.shape[1])
    ):
        _run("ms4_matmul_tn", (*total_oi.shape, dy_to.shape[0]), (dy_to, x_ti, total_oi), 1.0, adds=True)
    elif total_oi.dtype == dy_to.dtype:
        total_oi.addmm_(dy_to.t(), x_ti)
    else:
        total_oi += dy_to.t() @ x_ti


def _serves(left: Tensor, right: Tensor, summed: tuple[int, int], work: int) -> bool:
    """Whether both are plain contiguous fp32 matrices that fit, ``summed`` being the axis of each that the product sums over."""
    both = (left, right)
    return (
        (work >= _LEAST or is_on())
        and left.ndim == right.ndim == 2
        and left.shape[summed[0]] == right.shape[summed[1]]
        and readable(*both)
        and all(x.dtype == torch.float32 and x.is_contiguous() for x in both)
        and library() is not None
    )


def run_lora(
    name: str, sizes: tuple[int, int, int, int], inputs: tuple[Tensor, ...], scale: float, outputs: tuple[Tensor | None, ...]
) -> None:
    """Call ``ms4_lora_forward`` or ``ms4_lora_backward``: sizes t, o, i, r; inputs x or dy, W, A, B; outputs y and low, or dx and dlow."""
    arguments: list[Any] = [ctypes.c_int32(size) for size in sizes]
    arguments += [ctypes.c_void_p(x.data_ptr()) for x in inputs]
    arguments.append(ctypes.c_float(scale))
    arguments += [None if x is None else ctypes.c_void_p(x.data_ptr()) for x in outputs]
    _call(name, arguments)


def _run(name: str, sizes: tuple[int, ...], tensors: tuple[Tensor, ...], alpha: float | None = None, *, adds: bool = False) -> None:
    arguments: list[Any] = [ctypes.c_int32(size) for size in sizes]
    arguments += [ctypes.c_void_p(x.data_ptr()) for x in tensors]
    if alpha is not None:
        arguments += [ctypes.c_float(alpha), ctypes.c_int32(adds)]
    _call(name, arguments)


def _call(name: str, arguments: list[Any]) -> None:
    if getattr(library(), name)(*arguments, ctypes.c_int32(torch.get_num_threads())):
        raise MemoryError("no memory for the scratch of a compiled product")
