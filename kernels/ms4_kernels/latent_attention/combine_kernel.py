"""Joins the splits of a context: each split's mixture weighs as much as the sum of its softmax terms.

Splits are added in their order, one after another, up to the first that is empty: how many there are does not change a bit.
Exercise it: ``pytest tests/kernels/ms4_kernels/latent_attention/test_combine_kernel.py``.

Shape suffixes: k splits, c latent lanes.
"""

# ruff: noqa: ANN001, ANN201 - what a kernel is given has types of Triton's own

from __future__ import annotations

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-3.0e38)


@triton.jit(do_not_specialize=["num_splits"])
def combine_splits_kernel(part_ptr, lse_ptr, out_ptr, num_splits, num_rows, LATENT: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write one row of out [num_rows, LATENT]; part fp32 [k, num_rows, LATENT], lse fp32 [k, num_rows].

    An lse of -inf marks an empty split, whose part was never written; none follows that is not.
    """
    row = tl.program_id(0).to(tl.int64)
    c_c = tl.arange(0, BLOCK_C)
    top = tl.full((), _LOWEST, tl.float32)
    total = tl.zeros((), tl.float32)
    mixed_c = tl.zeros((BLOCK_C,), tl.float32)
    split = 0
    lse = tl.load(lse_ptr + row)
    while lse != -float("inf"):
        place = split * num_rows + row
        new = tl.maximum(top, lse)
        shrink, weight = tl.exp2(top - new), tl.exp2(lse - new)
        part_c = tl.load(part_ptr + place * LATENT + c_c, mask=c_c < LATENT, other=0.0)
        total = total * shrink + weight
        mixed_c = mixed_c * shrink + weight * part_c
        top = new
        split += 1
        lse = tl.load(lse_ptr + place + num_rows, mask=split < num_splits, other=-float("inf"))
    mixed_c = mixed_c / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + row * LATENT + c_c, mixed_c.to(out_ptr.dtype.element_ty), mask=c_c < LATENT)
