"""Cross-entropy of a linear head as the definition reads, with all logits at once: what the other backends must agree with.

Exercise it: ``pytest tests/kernels/ms4_kernels/cross_entropy/test_reference.py``.

Shape suffixes: n tokens with a target, d hidden size, v vocabulary, r rank of a low-rank part.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy_reference(
    hidden_nd: Tensor, head_vd: Tensor, target_n: Tensor, low_rank: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The sum of -log softmax(hidden @ head.T)[target], in nats, a scalar of fp32 or, for fp64 inputs, fp64.

    ``low_rank`` ([n, r], [v, r]) adds the product of its two to the logits.
    """
    logits_nv = hidden_nd @ head_vd.T
    if low_rank is not None:
        logits_nv = logits_nv + low_rank[0] @ low_rank[1].T
    logits_nv = logits_nv.to(torch.promote_types(hidden_nd.dtype, torch.float32))
    return -logits_nv.log_softmax(dim=1).gather(1, target_n[:, None]).sum()
