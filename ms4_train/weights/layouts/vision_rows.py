"""Rows of the vision tower's query and key matrices: rotary pairs as neighbours (native) or as halves (Hugging Face), spec section 3.1.

Exercise it: ``pytest tests/ms4_train/weights/layouts/test_vision_rows.py``.
"""

from __future__ import annotations

from torch import Tensor


def to_hf_rows(native_od: Tensor, heads: int) -> Tensor:
    """Reorder the rows [O, ...] of a matrix from native order. Within a head, row 2i + j goes to row j * half + i."""
    return _swapped(native_od, heads, outer=-1, inner=2)


def to_native_rows(hf_od: Tensor, heads: int) -> Tensor:
    """The inverse of ``to_hf_rows``."""
    return _swapped(hf_od, heads, outer=2, inner=-1)


def _swapped(rows_od: Tensor, heads: int, *, outer: int, inner: int) -> Tensor:
    per_head = rows_od.unflatten(0, (heads, -1)).unflatten(1, (outer, inner))
    return per_head.transpose(1, 2).reshape(rows_od.shape)
