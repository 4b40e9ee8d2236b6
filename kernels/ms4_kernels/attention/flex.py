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
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ms4_kernels.attention.documents import PackedDocuments

_BLOCK = 128


def document_block_mask(document_t: Tensor) -> BlockMask:
    """The mask of a packed row, block by block.

    Args:
        document_t: int [T], the document of each token; it never falls.

    Returns:
        A causal mask inside each document; blocks that lie in one document below the diagonal need no look at single tokens.
    """
    num_tokens = document_t.shape[0]
    num_blocks = -(-num_tokens // _BLOCK)
    # What lies behind the row belongs to no document, so that the last block is never taken for a full one.
    blocks_qt = F.pad(document_t, (0, num_blocks * _BLOCK - num_tokens), value=-1).view(num_blocks, _BLOCK)
    first_q, last_q = blocks_qt[:, 0], blocks_qt[:, -1]
    block_q = torch.arange(num_blocks, device=document_t.device)
    below_qk = block_q[:, None] > block_q
    # Numbers never fall along the row: below the diagonal two blocks share a document only if the earlier one ends in that which the later
    # one begins with, and they are seen whole only if both hold nothing else.
    shared_qk = below_qk & (first_q[:, None] == last_q)
    full_qk = shared_qk & (last_q[:, None] == first_q)
    partial_qk = (shared_qk & ~full_qk) | torch.eye(num_blocks, dtype=torch.bool, device=document_t.device)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document_t[query] == document_t[key])

    partial, full = _listed(partial_qk), _listed(full_qk)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(num_tokens, num_tokens))


def attention_flex(query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments, scale: float) -> Tensor:
    """Return [T, h, v]; arguments as those of ``packed_causal_attention``."""
    attend = flex_attention if query_thx.device.type == "cpu" else _compiled()
    query, key, value = (x.transpose(0, 1)[None] for x in (query_thx, key_thx, value_thv))
    out_1htv: Any = attend(query, key, value, block_mask=documents.block_mask, scale=scale)
    return out_1htv[0].transpose(0, 1)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


def _listed(wanted_qk: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries wants, and all blocks with the wanted ones in front: int32 [1, 1, q], [1, 1, q, k]."""
    order_qk = wanted_qk.int().argsort(dim=1, descending=True, stable=True)
    return wanted_qk.sum(dim=1, dtype=torch.int32)[None, None], order_qk.int()[None, None].contiguous()
