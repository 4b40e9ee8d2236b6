"""Matrix products of row segments with the weight of each segment's expert: the three that a forward and a backward need.

fp32 goes to ``torch.nn.functional.grouped_mm``. It takes neither fp64 nor, at speed, half precision: without matrix units a CPU
multiplies bf16 about ten times slower than fp32 (measured: 44 ms against 4 ms for 8192 rows of 128x128, 32 experts), so half precision
is widened to fp32 one expert at a time, which also accumulates in fp32. Not differentiable: the caller writes its own backward.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_grouped.py``.

Shape suffixes: e experts, r rows sorted by expert, i / o features of the input / output side.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def rows_by_weight(rows_ri: Tensor, weight_eoi: Tensor, ends_e: Tensor) -> Tensor:
    """Return ``rows @ weight_e^T`` [R, O], as ``F.linear`` of each expert's rows."""
    return _product(rows_ri, weight_eoi.transpose(1, 2), ends_e)


def rows_by_weight_transposed(rows_ro: Tensor, weight_eoi: Tensor, ends_e: Tensor) -> Tensor:
    """Return ``rows @ weight_e`` [R, I], the input gradient of :func:`rows_by_weight`."""
    return _product(rows_ro, weight_eoi, ends_e)


def rows_by_rows(left_ro: Tensor, right_ri: Tensor, ends_e: Tensor) -> Tensor:
    """Return ``left_e^T @ right_e`` [E, O, I], the weight gradient of :func:`rows_by_weight`; zeros for experts without rows."""
    if left_ro.dtype == torch.float32 and left_ro.shape[0]:
        return F.grouped_mm(left_ro.t(), right_ri, offs=ends_e)
    out_eoi = left_ro.new_zeros(ends_e.numel(), left_ro.shape[1], right_ri.shape[1])
    for e, rows in _segments(ends_e):
        out_eoi[e] = _wide(left_ro[rows]).t() @ _wide(right_ri[rows])
    return out_eoi


def _product(rows_ri: Tensor, weight_eio: Tensor, ends_e: Tensor) -> Tensor:
    if rows_ri.dtype == torch.float32 and rows_ri.shape[0]:
        return F.grouped_mm(rows_ri, weight_eio, offs=ends_e)
    out_ro = rows_ri.new_empty(rows_ri.shape[0], weight_eio.shape[2])
    for e, rows in _segments(ends_e):
        out_ro[rows] = _wide(rows_ri[rows]) @ _wide(weight_eio[e])
    return out_ro


def _segments(ends_e: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield (expert, its rows) for every expert that has rows."""
    start = 0
    for e, end in enumerate(ends_e.tolist()):
        if end > start:
            yield e, slice(start, end)
        start = end


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
