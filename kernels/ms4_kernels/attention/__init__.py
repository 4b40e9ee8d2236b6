"""Causal attention inside each document of a packed row, for fresh sequences: what training and prefill need."""

from ms4_kernels.attention.documents import PackedDocuments
from ms4_kernels.attention.interface import Backend, packed_causal_attention

__all__ = ["Backend", "PackedDocuments", "packed_causal_attention"]
