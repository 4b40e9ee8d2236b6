"""Packed attention with torch's ``scaled_dot_product_attention``: one call per rectangle of documents. Where there is nothing better.

Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_sdpa.py``.

Shape suffixes: t tokens, s slots of all rectangles, h heads, x key width, v value width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ms4_kernels.attention.documents import PackedDocuments
from ms4_kernels.attention.grouping import Rectangle
from ms4_kernels.attention.widths import padded_to_one_width


def attention_sdpa(
    query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments, scale: float, causal: bool = True
) -> Tensor:
    """Return [T, h, v]; arguments as those of ``packed_attention``."""
    groups, value_width = documents.groups if causal else documents.equal_groups, value_thv.shape[-1]
    # With one width for all three, torch has a kernel that never holds all scores.
    query, key, value = (groups.spread(x) for x in padded_to_one_width(query_thx, key_thx, value_thv))
    outs = [_attend(query, key, value, rectangle, scale, causal) for rectangle in groups.rectangles]
    return groups.collect(outs[0] if len(outs) == 1 else torch.cat(outs))[..., :value_width]


def _attend(query_shx: Tensor, key_shx: Tensor, value_shx: Tensor, rectangle: Rectangle, scale: float, causal: bool) -> Tensor:
    """Attend inside each document of one rectangle; return its slots' outputs [b * l, h, x]."""

    def heads_first(x: Tensor) -> Tensor:
        return x[rectangle.slots].unflatten(0, (rectangle.count, rectangle.length)).transpose(1, 2)

    query, key, value = heads_first(query_shx), heads_first(key_shx), heads_first(value_shx)
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale).transpose(1, 2).flatten(0, 1)
