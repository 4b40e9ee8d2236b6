"""Loss and gradient of a chunk's logits with torch's own softmax, which reads them once where they fit in the cache.

Exercise it: ``pytest tests/kernels/ms4_kernels/cross_entropy/test_rows_torch.py``.

Shape suffixes: c tokens of one chunk, v vocabulary, 1 a single column.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CACHED_LOGITS = 1 << 21  # 8 MiB of fp32; measured best of 2^19 to 2^23
_LEAST_TOKENS = 128  # below it the products with the head read its weight too often
_TINY = 1e-30  # a probability from which its logarithm is still exact to fp32's last digits


def chunk_tokens_torch(vocabulary: int, most: int) -> int:
    """Tokens whose logits are worked on at once: as many as stay in the cache, at most ``most``."""
    return min(most, max(_LEAST_TOKENS, _CACHED_LOGITS // vocabulary))


def rows_torch(logits_cv: Tensor, target_c: Tensor, want_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The summed loss in nats and, if wanted, softmax - onehot in the type of the logits.

    Args:
        logits_cv: [C, V]; read only.
        target_c: int64 [C], each in 0..V-1.
        want_gradient: whether to return [C, V] as well.
    """
    wide = torch.promote_types(logits_cv.dtype, torch.float32)
    target_c1 = target_c[:, None]
    if not want_gradient:
        wide_cv = logits_cv.to(wide)
        return (wide_cv.logsumexp(dim=1, keepdim=True) - wide_cv.gather(1, target_c1)).sum(), None
    probability_cv = torch.softmax(logits_cv, dim=1, dtype=wide)
    hit_c1 = probability_cv.gather(1, target_c1)
    loss_c1 = -hit_c1.log()
    lost_c = (hit_c1 < _TINY).squeeze(1).nonzero().squeeze(1)  # there the probability has underflowed, or soon would
    if lost_c.numel():
        wide_lv = logits_cv[lost_c].to(wide)
        loss_c1[lost_c] = wide_lv.logsumexp(dim=1, keepdim=True) - wide_lv.gather(1, target_c1[lost_c])
    return loss_c1.sum(), probability_cv.scatter_(1, target_c1, hit_c1 - 1.0).to(logits_cv.dtype)
