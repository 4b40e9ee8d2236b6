"""Rows back to their tokens: the sum of each token's rows, weighted or not, in slot order; slots without a row add nothing.

Gathered and added one slot after another, never by atomic or unordered adds, so that two runs agree to the bit.
Exercise it: ``pytest tests/kernels/ms4_kernels/moe/test_gather_sum.py``.

Shape suffixes: t tokens, k slots of a token, r rows, d hidden, s tokens that have a row in a slot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ms4_kernels.dispatch import Backend, choose


def gather_sum(rows_rd: Tensor, row_tk: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Return ``out[t] = sum_k rows[row_tk[t, k]]``, added in slot order, in fp32 or wider, as the rows' type. Not differentiable.

    Args:
        rows_rd: [R, d].
        row_tk: int64 [T, K], the row of each slot, -1 for none.
        backend: ``auto`` takes Triton on a GPU, torch elsewhere.
    """
    if choose("gather and sum", backend, rows_rd) != "triton":
        return gather_sum_torch(rows_rd, row_tk)
    from ms4_kernels.moe.triton.launch import combine  # Triton is optional

    with torch.cuda.device_of(rows_rd):
        return combine(rows_rd.contiguous(), row_tk.contiguous())


def gather_sum_torch(rows_rd: Tensor, row_tk: Tensor, weights_tk: Tensor | None = None) -> Tensor:
    """The same in plain torch; with weights, ``sum_k weights[t, k] * rows[row_tk[t, k]]``."""
    wide = torch.promote_types(rows_rd.dtype, torch.float32)
    out_td = torch.zeros(row_tk.shape[0], rows_rd.shape[1], dtype=wide, device=rows_rd.device)
    has_empty = bool((row_tk < 0).any())
    for k in range(row_tk.shape[1]):
        row_t = row_tk[:, k]
        weight_t1 = None if weights_tk is None else weights_tk[:, k, None].to(wide)
        if not has_empty:
            _add(out_td, rows_rd.index_select(0, row_t), weight_t1)
            continue
        token_s = (row_t >= 0).nonzero().squeeze(1)
        part_sd = out_td.index_select(0, token_s)
        _add(part_sd, rows_rd.index_select(0, row_t[token_s]), None if weight_t1 is None else weight_t1[token_s])
        out_td.index_copy_(0, token_s, part_sd)
    return out_td.to(rows_rd.dtype)


def _add(out_td: Tensor, part_td: Tensor, weight_t1: Tensor | None) -> None:
    if weight_t1 is None:
        out_td.add_(part_td)
    else:
        out_td.addcmul_(part_td.to(out_td.dtype), weight_t1)
