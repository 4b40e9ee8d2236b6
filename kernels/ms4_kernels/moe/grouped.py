"""Matrix products of row segments with the weight of each segment's expert: the three that a forward and a backward need.

A loop of plain products over the experts that have rows. ``torch.nn.functional.grouped_mm`` does the same inside and was measured equal
(3.9 ms for 8192 rows of 128x128 over 32 experts, fp32, one thread), but it takes no fp64 and no LoRA rank whose rows are not multiples of
16 bytes. Half precision is widened to fp32 one expert at a time: without matrix units a CPU multiplies bf16 some ten times slower (44 ms
for the same product), and this accumulates in fp32 besides. Not differentiable: the caller writes its own backward.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_grouped.py``.

Shape suffixes: e experts, r rows sorted by expert, i / o features of the input / output side.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def rows_by_weight(rows_ri: Tensor, weight_eoi: Tensor, ends_e: Tensor) -> Tensor:
    """Return ``rows @ weight_e^T`` [R, O]: ``F.linear`` of each expert's rows.

    Args:
        rows_ri: [R, I] sorted by expert.
        weight_eoi: [E, O, I], the type of the rows.
        ends_e: integers [E], one past the last row of each expert; the last one is R.
    """
    return _product(rows_ri, weight_eoi.transpose(1, 2), ends_e)


def rows_by_weight_transposed(rows_ro: Tensor, weight_eoi: Tensor, ends_e: Tensor) -> Tensor:
    """Return ``rows @ weight_e`` [R, I], the input gradient of :func:`rows_by_weight`."""
    return _product(rows_ro, weight_eoi, ends_e)


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


def _product(rows_ri: Tensor, weight_eio: Tensor, ends_e: Tensor) -> Tensor:
    out_ro = rows_ri.new_empty(rows_ri.shape[0], weight_eio.shape[2])
    counts = _counts(ends_e)
    for count, rows, weight, out in zip(counts, rows_ri.split(counts), weight_eio.unbind(), out_ro.split(counts), strict=True):
        if count:
            _multiply(rows, weight, out)
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
