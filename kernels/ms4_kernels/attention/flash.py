"""Packed attention with FlashAttention's variable-length kernels, where they are installed (version 3 on Hopper, else version 2).

The call is tested against a stand-in that checks what it is given and computes by the reference; the project has not yet run it with the
real package on a GPU.
Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_flash.py``.

Shape suffixes: t tokens, h heads, x key width, v value width.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ms4_kernels.attention.documents import PackedDocuments
from ms4_kernels.attention.widths import padded_to_one_width

FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_MAX_WIDTH = 256
INSTALL = "pip install flash-attn --no-build-isolation"
_HOPPER = (9, 0)


def flash_package(device: torch.device) -> str | None:
    """The module to call on this device, None where there is none: version 3 has kernels for Hopper alone."""
    if device.type != "cuda":
        return None
    return _package(torch.cuda.get_device_capability(device))


@cache
def _package(capability: tuple[int, int]) -> str | None:
    if capability == _HOPPER and importlib.util.find_spec("flash_attn_interface") is not None:
        return "flash_attn_interface"
    return "flash_attn" if importlib.util.find_spec("flash_attn") is not None else None


def attention_flash(
    query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments, scale: float, causal: bool = True
) -> Tensor:
    """Return [T, h, v]; arguments as those of ``packed_attention``, of bf16 or fp16 and at most 256 wide."""
    package = flash_package(query_thx.device)
    assert package is not None
    varlen = importlib.import_module(package).flash_attn_varlen_func
    return call_varlen(varlen, query_thx, key_thx, value_thv, documents, scale, causal)


def call_varlen(
    varlen: Callable[..., Any],
    query_thx: Tensor,
    key_thx: Tensor,
    value_thv: Tensor,
    documents: PackedDocuments,
    scale: float,
    causal: bool = True,
) -> Tensor:
    """Call ``flash_attn_varlen_func`` of either version on a packed row; returns [T, h, v]."""
    query, key, value = padded_to_one_width(query_thx, key_thx, value_thv)
    out = varlen(
        query,
        key,
        value,
        cu_seqlens_q=documents.cu_seqlens_b,
        cu_seqlens_k=documents.cu_seqlens_b,
        max_seqlen_q=documents.longest,
        max_seqlen_k=documents.longest,
        softmax_scale=scale,
        causal=causal,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    out = out[0] if isinstance(out, tuple) else out  # early releases of version 3 return the normaliser too
    return out[..., : value_thv.shape[-1]]
