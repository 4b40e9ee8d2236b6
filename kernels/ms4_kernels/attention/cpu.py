"""Packed attention on a CPU: blocks of queries against the keys before them, forward and backward by hand.

Nothing is saved but queries, keys and values; the backward forms each block's probabilities again. A block holds at most
``BLOCK_SCORES`` scores (``_LEAST_ROWS`` rows of one head for very long documents), about what stays in a core's cache, so that memory is
linear in the tokens and half of the products, those above the diagonal, are never made. Types narrower than fp32 are computed in fp32.
Exercise it: ``pytest tests/kernels/ms4_kernels/attention/test_cpu.py``.

Shape suffixes: t tokens, s slots of one run, h heads, x key width, v value width; n (document, head) pairs of one step, l tokens of their
documents, q queries of one block, k keys up to the end of the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ms4_kernels.attention.documents import PackedDocuments
from ms4_kernels.attention.runs import Run

BLOCK_SCORES = 1 << 18
_ROWS, _LEAST_ROWS = 64, 32


def attention_cpu(query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, documents: PackedDocuments, scale: float) -> Tensor:
    """Return [T, h, v]; arguments as those of ``packed_causal_attention``."""
    return _PackedAttention.apply(query_thx, key_thx, value_thv, documents.runs, scale)  # type: ignore[return-value]


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_thx: Tensor, key_thx: Tensor, value_thv: Tensor, runs: tuple[Run, ...], scale: float) -> Tensor:
        ctx.save_for_backward(query_thx, key_thx, value_thv)
        ctx.runs, ctx.scale = runs, scale
        out_thv = torch.empty(value_thv.shape, dtype=value_thv.dtype, device=value_thv.device)
        for run in runs:
            read, written = _open(run, (query_thx, key_thx, value_thv), (out_thv,))
            for query_nlx, key_nlx, value_nlv, out_nlv in _steps(run, read, written):
                for first, last in _blocks(run.length):
                    probability_nqk = _probabilities(query_nlx, key_nlx, first, last, scale)
                    out_nlv[:, first:last] = torch.bmm(probability_nqk, value_nlv[:, :last])
            _close(run, written, (out_thv,))
        return out_thv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, scale = ctx.saved_tensors, ctx.scale
        grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
        for run in ctx.runs:
            read, written = _open(run, (*inputs, grad_outputs[0]), grads)
            for step in _steps(run, read, written):
                _backward_step(*step, length=run.length, scale=scale)
            _close(run, written, grads)
        return (*grads, None, None)


def _backward_step(
    query_nlx: Tensor,
    key_nlx: Tensor,
    value_nlv: Tensor,
    grad_out_nlv: Tensor,
    grad_query_nlx: Tensor,
    grad_key_nlx: Tensor,
    grad_value_nlv: Tensor,
    *,
    length: int,
    scale: float,
) -> None:
    """Write the three gradients of one step."""
    sum_key_nlx = torch.zeros(key_nlx.shape, dtype=key_nlx.dtype)
    sum_value_nlv = torch.zeros(value_nlv.shape, dtype=value_nlv.dtype)
    for first, last in _blocks(length):
        query_nqx, grad_out_nqv = query_nlx[:, first:last], grad_out_nlv[:, first:last]
        probability_nqk = _probabilities(query_nlx, key_nlx, first, last, scale)
        sum_value_nlv[:, :last].baddbmm_(probability_nqk.transpose(1, 2), grad_out_nqv)
        grad_probability_nqk = torch.bmm(grad_out_nqv, value_nlv[:, :last].transpose(1, 2))
        grad_score_nqk = torch.ops.aten._softmax_backward_data(grad_probability_nqk, probability_nqk, -1, probability_nqk.dtype)
        grad_query_nlx[:, first:last] = _scaled_bmm(grad_score_nqk, key_nlx[:, :last], scale)
        sum_key_nlx[:, :last].baddbmm_(grad_score_nqk.transpose(1, 2), query_nqx, alpha=scale)
    grad_key_nlx.copy_(sum_key_nlx)
    grad_value_nlv.copy_(sum_value_nlv)


def _probabilities(query_nlx: Tensor, key_nlx: Tensor, first: int, last: int, scale: float) -> Tensor:
    """[n, q, k]: what the queries ``first`` to ``last`` give each key up to ``last``."""
    score_nqk = _scaled_bmm(query_nlx[:, first:last], key_nlx[:, :last].transpose(1, 2), scale)
    future_qq = torch.ones(last - first, last - first, dtype=torch.bool).triu_(1)
    score_nqk[:, :, first:].masked_fill_(future_qq, -torch.inf)
    return torch.softmax(score_nqk, dim=-1)


def _scaled_bmm(left: Tensor, right: Tensor, scale: float) -> Tensor:
    unread = left.new_empty(1, 1, 1).expand(left.shape[0], left.shape[1], right.shape[2])
    return torch.baddbmm(unread, left, right, beta=0, alpha=scale)


def _rows(length: int) -> int:
    """Queries of one block."""
    return min(length, _ROWS if _ROWS * length <= BLOCK_SCORES else _LEAST_ROWS)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    rows = _rows(length)
    return ((first, min(first + rows, length)) for first in range(0, length, rows))


def _open(run: Run, read: tuple[Tensor, ...], written: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The run's slots of what is read, and where its slots are written: the very rows, or a buffer that ``_close`` brings back."""
    if run.token_s is None:
        return tuple(run.take(x) for x in read), tuple(run.take(x) for x in written)
    slots = run.count * run.length
    return tuple(run.take(x) for x in read), tuple(x.new_empty(slots, *x.shape[1:]) for x in written)


def _close(run: Run, buffers: tuple[Tensor, ...], written: tuple[Tensor, ...]) -> None:
    if run.token_s is None:
        return
    for whole, buffer in zip(written, buffers, strict=True):
        run.put(whole, buffer)


def _steps(run: Run, read: tuple[Tensor, ...], written: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Views [n, l, ...] of a few documents or heads at a time, as many as ``BLOCK_SCORES`` allows.

    One document's heads are a view. Several documents are a copy, and what is written comes back when the step is over.
    """
    heads = read[0].shape[1]
    pairs = max(1, BLOCK_SCORES // (_rows(run.length) * run.length))
    if pairs >= 2 * heads and run.count > 1:
        yield from _document_steps(run, read, written, pairs // heads)
        return
    for document in range(run.count):
        here = slice(document * run.length, (document + 1) * run.length)
        for head in range(0, heads, pairs):
            views = [x[here, head : head + pairs].transpose(0, 1) for x in (*read, *written)]
            yield (*(_widened(x) for x in views[: len(read)]), *views[len(read) :])


def _document_steps(run: Run, read: tuple[Tensor, ...], written: tuple[Tensor, ...], documents: int) -> Iterator[tuple[Tensor, ...]]:
    for first in range(0, run.count, documents):
        count = min(documents, run.count - first)
        here = slice(first * run.length, (first + count) * run.length)
        views = [x[here].unflatten(0, (count, run.length)).transpose(1, 2) for x in (*read, *written)]
        copies = [_widened(x.reshape(-1, *x.shape[2:])) for x in views[: len(read)]]
        buffers = [copies[0].new_empty(count * x.shape[1], *x.shape[2:]) for x in views[len(read) :]]
        yield (*copies, *buffers)
        for view, buffer in zip(views[len(read) :], buffers, strict=True):
            view.copy_(buffer.view(view.shape))


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
