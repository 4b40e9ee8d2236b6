"""Packed attention on a CPU: by the compiled kernels where there are any and they take the type, else by torch's own attention.

Blocks of queries in plain torch were tried in between (products above the diagonal left out, probabilities formed again in the backward):
1.2 to 1.4 times as fast as torch's attention for documents of 512 tokens, but slower at 2048 tokens and below 256, and slower than the
compiled kernels everywhere.
Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_cpu.py``.
"""

from __future__ import annotations

from torch import Tensor

from ms4_kernels.attention.documents import PackedDocuments
from ms4_kernels.attention.native import attention_native, serves
from ms4_kernels.attention.sdpa import attention_sdpa


def attention_cpu(
    query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments, scale: float, causal: bool = True
) -> Tensor:
    """Return [T, h, v]; arguments as those of ``packed_attention``."""
    attend = attention_native if serves(query_thx) else attention_sdpa
    return attend(query_thx, key_thx, value_thv, documents, scale, causal)
