"""The one entrance to the cross-entropy of a linear head; it drops tokens without a target and picks the implementation.

Exercise it: ``pytest tests/kernels/ms4_kernels/cross_entropy``.

Shape suffixes: t tokens of the batch, n tokens with a target, d hidden size, v vocabulary, r rank of a low-rank part.
"""

from __future__ import annotations

from torch import Tensor

from ms4_kernels.cross_entropy.chunked import linear_cross_entropy_chunked
from ms4_kernels.cross_entropy.reference import linear_cross_entropy_reference
from ms4_kernels.cross_entropy.rows_torch import chunk_tokens_torch, rows_torch
from ms4_kernels.dispatch import Backend, choose

__all__ = ["IGNORED_TARGET", "linear_cross_entropy"]

IGNORED_TARGET = -100


def linear_cross_entropy(
    hidden_td: Tensor,
    head_vd: Tensor,
    target_t: Tensor,
    *,
    low_rank: tuple[Tensor, Tensor] | None = None,
    chunk_tokens: int = 1024,
    backend: Backend = "auto",
) -> Tensor:
    """Sum of the negative log likelihoods of the targets, in nats.

    Args:
        hidden_td: [T, d] hidden states after the final norm.
        head_vd: [V, d] weight of the head, of the same dtype.
        target_t: [T] int64; tokens with ``IGNORED_TARGET`` carry no loss and cost nothing.
        low_rank: ([T, r], [V, r]); their product is added to the logits; an adapter of the head is such a pair.
        chunk_tokens: the most tokens whose [chunk, V] logits exist at once; the CPU path takes fewer where that keeps them in the cache.
        backend: ``auto`` takes Triton on a GPU and torch elsewhere; ``reference`` holds all logits.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs). It is a sum: the caller divides by the trained tokens of the whole optimizer step.
        A batch without targets gives 0 and zero gradients, so that every rank can take part in the backward pass.

    Raises:
        ValueError: shapes or types that do not fit, fewer than one token in a chunk, or a backend that cannot run.
    """
    _check(hidden_td, head_vd, target_t, chunk_tokens)
    if low_rank is not None:
        _check_low_rank(hidden_td, head_vd, low_rank)
    hidden_nd, target_n, low_rank = _keep_trained(hidden_td, target_t, low_rank)
    chosen = choose("cross_entropy", backend, hidden_td)
    if chosen == "reference":
        return linear_cross_entropy_reference(hidden_nd, head_vd, target_n, low_rank)
    if chosen == "triton":
        from ms4_kernels.cross_entropy.rows_triton import rows_triton  # needs Triton

        return linear_cross_entropy_chunked(hidden_nd, head_vd, target_n, chunk_tokens, rows_triton, low_rank)
    most = chunk_tokens_torch(head_vd.shape[0], chunk_tokens)
    return linear_cross_entropy_chunked(hidden_nd, head_vd, target_n, most, rows_torch, low_rank)


def _check(hidden_td: Tensor, head_vd: Tensor, target_t: Tensor, chunk_tokens: int) -> None:
    if hidden_td.dim() != 2 or head_vd.dim() != 2 or hidden_td.shape[1] != head_vd.shape[1] or target_t.shape != hidden_td.shape[:1]:
        raise ValueError(f"hidden {list(hidden_td.shape)}, head {list(head_vd.shape)}, targets {list(target_t.shape)} do not fit")
    if hidden_td.dtype != head_vd.dtype:
        raise ValueError(f"hidden is {hidden_td.dtype}, the head is {head_vd.dtype}")
    if chunk_tokens < 1:
        raise ValueError(f"a chunk of {chunk_tokens} tokens")


def _check_low_rank(hidden_td: Tensor, head_vd: Tensor, low_rank: tuple[Tensor, Tensor]) -> None:
    low_tr, up_vr = low_rank
    if low_tr.dim() != 2 or low_tr.shape[0] != hidden_td.shape[0] or up_vr.shape != (head_vd.shape[0], low_tr.shape[1]):
        raise ValueError(f"a low-rank part {list(low_tr.shape)} and {list(up_vr.shape)} does not fit head {list(head_vd.shape)}")
    if not low_tr.dtype == up_vr.dtype == hidden_td.dtype:
        raise ValueError(f"hidden is {hidden_td.dtype}, the low-rank part is {low_tr.dtype} and {up_vr.dtype}")


def _keep_trained(
    hidden_td: Tensor, target_t: Tensor, low_rank: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """([n, d], [n], ([n, r], [v, r])): the tokens that have a target."""
    index_n = (target_t != IGNORED_TARGET).nonzero().squeeze(1)
    if index_n.shape[0] == target_t.shape[0]:
        return hidden_td, target_t, low_rank
    if low_rank is not None:
        low_rank = low_rank[0].index_select(0, index_n), low_rank[1]
    return hidden_td.index_select(0, index_n), target_t.index_select(0, index_n), low_rank
