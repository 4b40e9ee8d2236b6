"""Packed attention as the definition reads, with every score of the row at once: what the other backends must agree with.

Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_reference.py``.

Shape suffixes: t and s tokens of the row, h heads, x key width, v value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ms4_kernels.attention.documents import PackedDocuments


def attention_reference(
    query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments, scale: float, causal: bool = True
) -> Tensor:
    """Return [T, h, v]; arguments as those of ``packed_attention``. Computes in fp32, or in fp64 for fp64 inputs."""
    wide = torch.promote_types(query_thx.dtype, torch.float32)
    document_t, token_t = documents.document_t, torch.arange(documents.num_tokens, device=query_thx.device)
    seen_ts = document_t[:, None] == document_t
    if causal:
        seen_ts = seen_ts & (token_t[:, None] >= token_t)
    score_hts = torch.einsum("thx,shx->hts", query_thx.to(wide), key_thx.to(wide)) * scale
    weight_hts = score_hts.masked_fill(~seen_ts, -torch.inf).softmax(dim=-1)
    return torch.einsum("hts,shv->thv", weight_hts, value_thv.to(wide)).to(query_thx.dtype)
