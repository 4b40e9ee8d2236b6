"""The one entrance to packed attention, causal or full; it checks shapes and picks the implementation, saying once which and why.

Exercise it: ``pytest tests/kernels/ms4_kernels/attention``.

Shape suffixes: t tokens, h heads, x key width, v value width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from ms4_kernels import dispatch
from ms4_kernels.attention.cpu import attention_cpu
from ms4_kernels.attention.documents import PackedDocuments
from ms4_kernels.attention.flash import FLASH_DTYPES, FLASH_MAX_WIDTH, INSTALL, attention_flash, flash_package
from ms4_kernels.attention.reference import attention_reference
from ms4_kernels.attention.sdpa import attention_sdpa
from ms4_kernels.invariant.switch import is_on

__all__ = ["Backend", "packed_attention"]

Backend = Literal["auto", "reference", "cpu", "sdpa", "flash", "flex"]

_LOG = logging.getLogger("ms4_kernels")
_FLEX_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FLEX_LEAST_WIDTH = 16  # the least that a matrix product of its kernels can have


def packed_attention(
    query_thx: Tensor,
    key_thx: Tensor,
    value_thv: Tensor,
    documents: PackedDocuments,
    *,
    scale: float,
    causal: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Softmax attention in which a token sees its own document only.

    Args:
        query_thx: [T, h, x] queries of a packed row.
        key_thx: [T, h, x] keys.
        value_thv: [T, h, v] values; v may differ from x. All three have one type.
        documents: how the row splits; one object for all layers of a pass, so that what backends derive from it is made once. Inside
            ``batch_invariant()`` each document is computed alone.
        scale: factor on the products of queries and keys.
        causal: whether a token sees itself and what comes before it, or its whole document.
        backend: ``auto`` takes ``cpu`` on a CPU. On a GPU it takes FlashAttention where it is installed and serves the type and width,
            else FlexAttention, else torch's ``sdpa`` over rectangles of documents; ``reference`` holds all T x T scores.

    Returns:
        [T, h, v] in the type of the inputs; differentiable in all three.

    Raises:
        ValueError: shapes, types or devices that do not fit, an unknown backend, or one that does not serve this call.
    """
    _check(query_thx, key_thx, value_thv, documents)
    device, width = query_thx.device, max(query_thx.shape[-1], value_thv.shape[-1])
    narrowest = min(query_thx.shape[-1], value_thv.shape[-1])
    chosen = _choose(backend, device.type, query_thx.dtype, (narrowest, width), flash_package(device), _has_triton(), causal)
    attend = _implementation(chosen)
    if is_on() and len(documents.lengths) > 1:
        parts = zip(*(x.split(documents.lengths) for x in (query_thx, key_thx, value_thv)), documents.lengths, strict=True)
        return torch.cat([attend(q, k, v, PackedDocuments((length,), device), scale, causal) for q, k, v, length in parts])
    return attend(query_thx, key_thx, value_thv, documents, scale, causal)


@cache
def _has_triton() -> bool:
    """Cached: looking for a package on disk is slow beside a layer of a small model."""
    return dispatch.has_triton()


def _implementation(name: str) -> Callable[..., Tensor]:
    if name == "flex":
        from ms4_kernels.attention.flex import attention_flex  # imports most of torch's compiler

        return attention_flex
    return {"reference": attention_reference, "cpu": attention_cpu, "sdpa": attention_sdpa, "flash": attention_flash}[name]


@cache
def _choose(
    backend: str, device: str, dtype: torch.dtype, widths: tuple[int, int], package: str | None, has_triton: bool, causal: bool = True
) -> str:
    """Resolve ``auto`` and check what was asked for by name; cached, so that each decision is logged once."""
    if backend not in ("auto", "reference", "cpu", "sdpa", "flash", "flex"):
        raise ValueError(f"unknown attention backend {backend!r}; known: auto, reference, cpu, sdpa, flash, flex")
    against = {
        "cpu": "" if device == "cpu" else f"it is for CPUs, not for {device}",
        "flash": _against_flash(device, dtype, widths[1], package),
        "flex": _against_flex(device, dtype, widths[0], has_triton),
    }
    if against.get(backend):
        raise ValueError(f"attention backend {backend!r} cannot be used: {against[backend]}; backend 'auto' picks what runs")
    chosen, why = (backend, "asked for") if backend != "auto" else _automatic(device, against)
    # On a GPU, whatever is not FlashAttention is slower than need be, and the reason names the cure where there is one.
    log = _LOG.warning if device == "cuda" and backend == "auto" and chosen != "flash" else _LOG.info
    kind = "causal" if causal else "full"
    log("attention operation, %s: %s backend on %s, %s: %s", kind, chosen, device, str(dtype).removeprefix("torch."), why)
    return chosen


def _automatic(device: str, against: dict[str, str]) -> tuple[str, str]:
    if device == "cpu":
        return "cpu", "no GPU"
    if device != "cuda":
        return "sdpa", f"the only one for {device}"
    if not against["flash"]:
        return "flash", "FlashAttention is installed"
    if not against["flex"]:
        return "flex", f"FlashAttention cannot be used: {against['flash']}"
    return "sdpa", f"FlashAttention cannot be used: {against['flash']}; nor can FlexAttention: {against['flex']}"


def _against_flash(device: str, dtype: torch.dtype, width: int, package: str | None) -> str:
    if device != "cuda":
        return f"it needs a GPU, the tensors are on {device}"
    if dtype not in FLASH_DTYPES:
        return f"it has no kernels for {str(dtype).removeprefix('torch.')}"
    if width > FLASH_MAX_WIDTH:
        return f"heads are {width} wide, it serves at most {FLASH_MAX_WIDTH}"
    return "" if package else f"flash-attn is not installed ({INSTALL})"


def _against_flex(device: str, dtype: torch.dtype, width: int, has_triton: bool) -> str:
    if device == "cpu":
        return ""  # uncompiled, on request, for tests
    if device != "cuda":
        return f"it needs a GPU, the tensors are on {device}"
    if dtype not in _FLEX_DTYPES:
        return f"it has no kernels for {str(dtype).removeprefix('torch.')}"
    if width < _FLEX_LEAST_WIDTH:
        return f"heads are {width} wide, it needs at least {_FLEX_LEAST_WIDTH}"
    return "" if has_triton else "Triton is not installed"


def _check(query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments) -> None:
    if query_thx.dim() != 3 or key_thx.shape != query_thx.shape or value_thv.shape[:-1] != query_thx.shape[:-1]:
        raise ValueError(f"queries {list(query_thx.shape)}, keys {list(key_thx.shape)}, values {list(value_thv.shape)}: not [T, h, width]")
    if query_thx.shape[0] != documents.num_tokens:
        raise ValueError(f"{query_thx.shape[0]} tokens, but documents of {documents.num_tokens} in all")
    if not query_thx.dtype == key_thx.dtype == value_thv.dtype:
        raise ValueError(f"queries are {query_thx.dtype}, keys {key_thx.dtype}, values {value_thv.dtype}")
    if not query_thx.device == key_thx.device == value_thv.device:
        raise ValueError(f"queries are on {query_thx.device}, keys on {key_thx.device}, values on {value_thv.device}")
