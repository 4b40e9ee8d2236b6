"""Packed attention by the compiled CPU kernels (``ms4_kernels/native/attention.c``): one call forward and one backward.

Queries, keys and values are read where they lie and are all that is saved. Beside them each thread holds the transposed keys and values of
one head and 48 rows of scores twice, all as long as the longest document: linear in its tokens.
Sums are made in one order whatever the number of threads. Types narrower than fp32 are computed in fp32.
Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_native.py``.

Shape suffixes: t tokens, h heads, x key width, v value width.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.attention.documents import PackedDocuments
from ms4_kernels.native import library
from ms4_kernels.native.library import readable

_INT, _LONG, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class _Attention(ctypes.Structure):
    """Field by field as the C source declares it."""

    _fields_ = [
        *((name, _INT) for name in ("documents", "heads", "key_width", "value_width", "threads", "causal")),
        ("scale", ctypes.c_float),
        *((name, _POINTER) for name in ("first", "length")),
        *((name, _LONG) for name in ("query_stride", "key_stride", "value_stride")),
        *((name, _POINTER) for name in ("query", "key", "value", "out", "dout", "dquery", "dkey", "dvalue")),
    ]


def serves(query_thx: Tensor) -> bool:
    """Whether the compiled kernels take tensors like this one: plain, at most fp32, on a CPU, and a library there."""
    return query_thx.dtype in (torch.float32, torch.bfloat16, torch.float16) and readable(query_thx) and library() is not None


def attention_native(
    query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments, scale: float, causal: bool = True
) -> Tensor:
    """Return [T, h, v]; arguments as those of ``packed_attention``, of a kind that :func:`serves` accepts."""
    return _NativeAttention.apply(query_thx, key_thx, value_thv, documents, scale, causal)  # type: ignore[return-value]


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments, scale: float, causal: bool
    ) -> Tensor:
        ctx.save_for_backward(query_thx, key_thx, value_thv)
        ctx.call = documents, scale, causal
        inputs = [_readable(x) for x in (query_thx, key_thx, value_thv)]
        out_thv = torch.empty(value_thv.shape)
        _run("ms4_attention_forward", inputs, documents, scale, causal, out=out_thv)
        return out_thv.to(value_thv.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors  # asked for once: under checkpointing each asking computes the forward again
        inputs = [_readable(x) for x in saved]
        grads = [torch.empty(x.shape) for x in saved]
        outputs = dict(zip(("dquery", "dkey", "dvalue"), grads, strict=True))
        _run("ms4_attention_backward", inputs, *ctx.call, dout=grad_outputs[0].float().contiguous(), **outputs)
        return (*(grad.to(x.dtype) for grad, x in zip(grads, saved, strict=True)), None, None, None)


def _readable(x: Tensor) -> Tensor:
    """fp32, the heads of a token one after another; tokens may lie apart."""
    wide = x.detach().float()
    return wide if wide.stride()[1:] == (wide.shape[2], 1) else wide.contiguous()


def _run(name: str, inputs: list[Tensor], documents: PackedDocuments, scale: float, causal: bool, **outputs: Tensor) -> None:
    loaded = library()
    assert loaded is not None
    query_thx, key_thx, value_thv = inputs
    length_b = torch.tensor(documents.lengths, dtype=torch.int32)
    first_b = (length_b.cumsum(0) - length_b).to(torch.int32)
    call = _Attention(
        documents=length_b.numel(),
        heads=query_thx.shape[1],
        key_width=query_thx.shape[2],
        value_width=value_thv.shape[2],
        threads=torch.get_num_threads(),
        causal=causal,
        scale=scale,
        first=first_b.data_ptr(),
        length=length_b.data_ptr(),
        query_stride=query_thx.stride(0),
        key_stride=key_thx.stride(0),
        value_stride=value_thv.stride(0),
        query=query_thx.data_ptr(),
        key=key_thx.data_ptr(),
        value=value_thv.data_ptr(),
        **{field: tensor.data_ptr() for field, tensor in outputs.items()},
    )
    if getattr(loaded, name)(ctypes.byref(call)):
        raise MemoryError("no memory for the workspace of the compiled attention")
