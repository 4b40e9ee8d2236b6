"""Sums over an axis and what is made of them, in an order that depends on the length of the axis only, for ``batch_invariant()``.

A sum folds its halves onto each other until one number is left: additions of whole tensors, which are rounded the same way wherever a
number lies. On a GPU one Triton program sums each row. Half precision is summed in fp32 and rounded once.
Exercise it: ``pytest tests/kernels/ms4_kernels/invariant/test_rows.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ms4_kernels import dispatch
from ms4_kernels.invariant.pointwise import apply

_HALF = (torch.bfloat16, torch.float16)


def total(func: Any, x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """In place of ``aten.sum.dim_IntList``."""
    if not x.is_floating_point() or not x.numel() or not x.ndim:
        return func(x, dim, keepdim, dtype=dtype)
    kind = dtype or x.dtype
    return _sum(x.to(_wide(kind)), _axes(x, dim), keepdim).to(kind)


def mean(func: Any, x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """In place of ``aten.mean.dim``."""
    if not x.is_floating_point() or not x.numel() or not x.ndim:
        return func(x, dim, keepdim, dtype=dtype)
    kind, axes = dtype or x.dtype, _axes(x, dim)
    terms = 1
    for axis in axes:
        terms *= x.shape[axis]
    return (_sum(x.to(_wide(kind)), axes, keepdim) / terms).to(kind)


def softmax(func: Any, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """In place of ``aten._softmax``."""
    if not x.numel() or not x.ndim:
        return func(x, dim, half_to_float)
    wide = x.to(_wide(x.dtype))
    part = apply(torch.ops.aten.exp.default, wide - wide.amax(dim, keepdim=True))
    return (part / _sum(part, [dim], True)).to(torch.float32 if half_to_float else x.dtype)


def log_softmax(func: Any, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """In place of ``aten._log_softmax``."""
    if not x.numel() or not x.ndim:
        return func(x, dim, half_to_float)
    wide = x.to(_wide(x.dtype))
    below = wide - wide.amax(dim, keepdim=True)
    rest = _sum(apply(torch.ops.aten.exp.default, below), [dim], True)
    return (below - apply(torch.ops.aten.log.default, rest)).to(torch.float32 if half_to_float else x.dtype)


def logsumexp(func: Any, x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    """In place of ``aten.logsumexp``."""
    if not x.is_floating_point() or not x.numel() or not x.ndim:
        return func(x, dim, keepdim)
    axes, wide = _axes(x, dim), x.to(_wide(x.dtype))
    top = wide.amax(axes, keepdim=True)
    top = top.masked_fill(top.isinf(), 0)  # nothing but -inf gives the logarithm of 0; an inf stays one
    found = apply(torch.ops.aten.log.default, _sum(apply(torch.ops.aten.exp.default, wide - top), axes, True)) + top
    for axis in [] if keepdim else sorted(axes, reverse=True):
        found = found.squeeze(axis)
    return found.to(x.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALF else dtype


def _axes(x: Tensor, dim: Sequence[int] | None) -> list[int]:
    """Distinct, counted from the front; all where none is named, as torch has it."""
    return [axis % x.ndim for axis in dim] if dim else list(range(x.ndim))


def _sum(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Of fp32 or fp64, over one axis after the other, last first."""
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        last = x.movedim(axis, -1)
        if dispatch.runs_triton(x.device) and x.dtype == torch.float32:
            from ms4_kernels.invariant.sum_triton import sum_triton  # needs Triton

            x = sum_triton(last)
        else:
            x = _folded(last)
        x = x.unsqueeze(axis) if keepdim else x
    return x


def _folded(x: Tensor) -> Tensor:
    """Sum over the last axis, which holds at least one number."""
    while (length := x.shape[-1]) > 1:
        half = length // 2
        folded = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat((folded, x[..., -1:]), dim=-1) if length % 2 else folded
    return x[..., 0]
