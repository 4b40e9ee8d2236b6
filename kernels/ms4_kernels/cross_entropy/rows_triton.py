"""Loss and gradient of a chunk's logits in one Triton launch: one program per token, two passes over its logits, no atomics.

The first pass finds the normaliser, the second writes softmax - onehot over the logits. Sums are fp32 whatever the type of the logits,
in an order that depends on nothing but V: two runs are bit-identical.
Exercise it: ``pytest tests/kernels/ms4_kernels/cross_entropy/test_rows_triton.py``.

Shape suffixes: c tokens of one chunk, v vocabulary, l lanes (logits of one token that are worked on at once).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_LANES, NUM_WARPS = 4096, 8


def rows_triton(logits_cv: Tensor, target_c: Tensor, want_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The summed loss in nats (NaN where a target lies outside 0..V-1) and, if wanted, softmax - onehot.

    Args:
        logits_cv: contiguous [C, V] of fp32, bf16 or fp16; overwritten by the gradient if that is wanted.
        target_c: int64 [C].
        want_gradient: whether to return [C, V] as well; it is ``logits_cv`` itself.
    """
    assert logits_cv.is_contiguous()
    tokens, vocabulary = logits_cv.shape
    loss_c = torch.empty(tokens, dtype=torch.float32, device=logits_cv.device)
    launch: Any = cross_entropy_rows[(tokens,)]
    launch(logits_cv, target_c.contiguous(), loss_c, vocabulary, WRITE=want_gradient, LANES=lanes_for(vocabulary), num_warps=NUM_WARPS)
    return loss_c.sum(), logits_cv if want_gradient else None


def lanes_for(vocabulary: int) -> int:
    """Logits that one program works on at once: a power of two."""
    return min(MOST_LANES, 1 << (vocabulary - 1).bit_length())


@triton.jit
def cross_entropy_rows(logits, target, loss, vocabulary, WRITE: tl.constexpr, LANES: tl.constexpr):  # noqa: ANN001, ANN201
    """One token's loss; with WRITE, its gradient over its logits."""
    token = tl.program_id(0).to(tl.int64)
    row = logits + token * vocabulary
    wanted = tl.load(target + token)
    lane_l = tl.arange(0, LANES)
    # A finite start, so that lanes beyond the vocabulary give 0 and not inf - inf.
    top_l = tl.full((LANES,), -3.0e38, tl.float32)
    sum_l = tl.zeros((LANES,), tl.float32)
    hit_l = tl.zeros((LANES,), tl.float32)
    for first in range(0, vocabulary, LANES):
        column_l = first + lane_l
        logit_l = tl.load(row + column_l, mask=column_l < vocabulary, other=float("-inf")).to(tl.float32)
        new_l = tl.maximum(top_l, logit_l)
        sum_l = sum_l * tl.exp(top_l - new_l) + tl.exp(logit_l - new_l)
        top_l = new_l
        hit_l += tl.where(column_l == wanted, logit_l, 0.0)  # read here, not by index: other threads overwrite it below
    top = tl.max(top_l, axis=0)
    # The normaliser, less the largest logit: their sum would round away digits of the differences that are wanted.
    rest = tl.log(tl.sum(sum_l * tl.exp(top_l - top), axis=0))
    is_known = (wanted >= 0) & (wanted < vocabulary)
    tl.store(loss + token, tl.where(is_known, (top - tl.sum(hit_l, axis=0)) + rest, float("nan")))
    if WRITE:
        for first in range(0, vocabulary, LANES):
            column_l = first + lane_l
            inside_l = column_l < vocabulary
            logit_l = tl.load(row + column_l, mask=inside_l, other=float("-inf")).to(tl.float32)
            grad_l = tl.exp((logit_l - top) - rest) - tl.where(column_l == wanted, 1.0, 0.0)
            tl.store(row + column_l, grad_l.to(logits.dtype.element_ty), mask=inside_l)
