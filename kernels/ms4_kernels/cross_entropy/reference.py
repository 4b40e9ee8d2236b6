"""Cross-entropy of a linear head as the definition reads, with all logits at once: what the other backends must agree with.

Exercise it: ``pytest tests/kernels/ms4_kernels/cross_entropy/test_reference.py``.

Shape suffixes: n tokens with a target, d hidden size, v vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy_reference(hidden_nd: Tensor, head_vd: Tensor, target_n: Tensor) -> Tensor:
    """The sum of -log softmax(hidden @ head.T)[target], in nats, a scalar of fp32 or, for fp64 inputs, fp64."""
    logits_nv = (hidden_nd @ head_vd.T).to(torch.promote_types(hidden_nd.dtype, torch.float32))
    return -logits_nv.log_softmax(dim=1).gather(1, target_n[:, None]).sum()
