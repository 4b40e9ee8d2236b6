"""Matrix products of row segments with the weight of each segment's expert: the three that a forward and a backward need.

A loop of plain products over the experts that have rows. ``torch.nn.functional.grouped_mm`` does the same inside and was measured equal
(3.9 ms for 8192 rows of 128x128 over 32 experts, fp32, one thread), but it takes no fp64 and no LoRA rank whose rows are not multiples of
16 bytes. Half precision is widened to fp32 one expert at a time: without matrix units a CPU multiplies bf16 some ten times slower (44 ms
for the same product), and this accumulates in fp32 besides. A quantised stack is dequantised to the type of the rows, one expert at a
time, and only experts that have rows. Not differentiable: the caller writes its own backward.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_grouped.py``.

Shape suffixes: e experts, r rows sorted by expert, i / o features of the input / output side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ms4_kernels.quantised import QuantisedWeight


def rows_by_weight(rows_ri: Tensor, weight_eoi: Tensor | QuantisedWeight, ends_e: Tensor) -> Tensor:
    """Return ``rows @ weight_e^T`` [R, O]: ``F.linear`` of each expert's rows.

    Args:
        rows_ri: [R, I] sorted by expert.
        weight_eoi: [E, O, I], the type of the rows, or quantised.
        ends_e: integers [E], one past the last row of each expert; the last one is R.
    """
    if isinstance(weight_eoi, Tensor):
        return _product(rows_ri, weight_eoi.transpose(1, 2).unbind().__getitem__, ends_e, weight_eoi.shape[1])
    return _product(rows_ri, lambda expert: weight_eoi.expert(expert).dequantise(rows_ri.dtype).t(), ends_e, weight_eoi.shape[1])


def rows_by_weight_transposed(rows_ro: Tensor, weight_eoi: Tensor | QuantisedWeight, ends_e: Tensor) -> Tensor:
    """Return ``rows @ weight_e`` [R, I], the input gradient of :func:`rows_by_weight`."""
    if isinstance(weight_eoi, Tensor):
        return _product(rows_ro, weight_eoi.unbind().__getitem__, ends_e, weight_eoi.shape[2])
    return _product(rows_ro, lambda expert: weight_eoi.expert(expert).dequantise(rows_ro.dtype), ends_e, weight_eoi.shape[2])


def rows_by_rows(left_ro: Tensor, right_ri: Tensor, ends_e: Tensor) -> Tensor:
    """Return ``left_e^T @ right_e`` [E, O, I], the weight gradient of :func:`rows_by_weight`; zeros for experts without rows."""
    out_eoi = left_ro.new_empty(ends_e.numel(), left_ro.shape[1], right_ri.shape[1])
    counts = _counts(ends_e)
    for count, left, right, out in zip(counts, left_ro.split(counts), right_ri.split(counts), out_eoi.unbind(), strict=True):
        if count:
            _multiply(left.t(), right, out)
        else:
            out.zero_()
    return out_eoi


def _product(rows_ri: Tensor, matrix_io: Callable[[int], Tensor], ends_e: Tensor, outputs: int) -> Tensor:
    out_ro = rows_ri.new_empty(rows_ri.shape[0], outputs)
    counts = _counts(ends_e)
    for expert, (count, rows, out) in enumerate(zip(counts, rows_ri.split(counts), out_ro.split(counts), strict=True)):
        if count:
            _multiply(rows, matrix_io(expert), out)  # no name for the matrix here: it would outlive the making of the next one
    return out_ro


def _counts(ends_e: Tensor) -> list[int]:
    """Rows of each expert. Splitting by them in one call costs a quarter less than slicing per expert when a decode step has few rows."""
    ends = ends_e.tolist()
    return [end - start for start, end in itertools.pairwise([0, *ends])]


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    if out.dtype in (torch.float32, torch.float64):
        torch.mm(left, right, out=out)
    else:
        out.copy_(left.float() @ right.float())
