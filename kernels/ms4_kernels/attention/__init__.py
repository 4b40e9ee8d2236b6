"""Attention inside each document of a packed row, causal or full, for fresh sequences: what training, prefill and image towers need."""

from ms4_kernels.attention.documents import PackedDocuments
from ms4_kernels.attention.interface import Backend, packed_attention

__all__ = ["Backend", "PackedDocuments", "packed_attention"]
