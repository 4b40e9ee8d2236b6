"""Packed attention with torch's FlexAttention: compiled where there is a GPU, for types and machines that FlashAttention does not serve.

Its block mask is made from the lengths alone, a few numbers per pair of blocks; torch's own builder would fill a T x T mask first.
Uncompiled, as on a CPU, it holds all scores: for tests.
Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_flex.py``.

Shape suffixes: t tokens, q blocks of queries, k blocks of keys, h heads, x key width, v value width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ms4_kernels.attention.documents import PackedDocuments

_BLOCK = 128


def document_block_mask(document_t: Tensor, *, causal: bool = True) -> BlockMask:
    """The mask of a packed row, block by block.

    Args:
        document_t: int [T], the document of each token; it never falls.
        causal: whether a token sees only itself and what comes before it.

    Returns:
        The mask; blocks that lie in one document, and below the diagonal where it is causal, need no look at single tokens.
    """
    num_tokens = document_t.shape[0]
    num_blocks = -(-num_tokens // _BLOCK)
    block_q = torch.arange(num_blocks, device=document_t.device)
    first_q, last_q = document_t[block_q * _BLOCK], document_t[((block_q + 1) * _BLOCK).clamp(max=num_tokens) - 1]
    whole_q = (block_q + 1) * _BLOCK <= num_tokens
    # Numbers never fall along the row: two blocks share a document if their ranges meet, and are seen whole if both hold one alone.
    shared_qk = (first_q[:, None] <= last_q) & (last_q[:, None] >= first_q)
    alone_q = (first_q == last_q) & whole_q  # a block that the row does not fill is never taken for a full one
    full_qk = shared_qk & alone_q[:, None] & alone_q
    if causal:
        shared_qk &= block_q[:, None] >= block_q
        full_qk &= block_q[:, None] > block_q

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = document_t[query] == document_t[key]
        return (query >= key) & same if causal else same

    partial, full = _listed(shared_qk & ~full_qk), _listed(full_qk)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(num_tokens, num_tokens))


def attention_flex(
    query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments, scale: float, causal: bool = True
) -> Tensor:
    """Return [T, h, v]; arguments as those of ``packed_attention``."""
    attend = flex_attention if query_thx.device.type == "cpu" else _compiled()
    query, key, value = (x.transpose(0, 1)[None] for x in (query_thx, key_thx, value_thv))
    out_1htv: Any = attend(query, key, value, block_mask=documents.block_mask if causal else documents.full_block_mask, scale=scale)
    return out_1htv[0].transpose(0, 1)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


def _listed(wanted_qk: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries wants, and all blocks with the wanted ones in front: int32 [1, 1, q], [1, 1, q, k]."""
    order_qk = wanted_qk.int().argsort(dim=1, descending=True, stable=True)
    return wanted_qk.sum(dim=1, dtype=torch.int32)[None, None], order_qk.int()[None, None].contiguous()
