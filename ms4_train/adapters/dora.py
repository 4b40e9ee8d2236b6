"""DoRA: the length of each row of the adapted weight is a parameter of its own, so that low-rank factors turn rows only.

The lengths of ``W + s B A`` are constants of the backward pass, as in PEFT and in section 4.3 of the paper (arXiv 2402.09353).
Exercise it: ``pytest tests/ms4_train/adapters/test_dora.py``.

Shape suffixes: o outputs, i inputs, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ms4_train.adapters.adapted import wide


class Magnitude(nn.Module):
    """Lengths of the rows, [o], trained."""

    def __init__(self, length_o: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(length_o)

    def forward(self, length_o: Tensor) -> Tensor:
        """Factor of each row whose length is ``length_o`` now."""
        return self.weight / length_o


@torch.no_grad()
def row_lengths(weight_oi: Tensor, a_ri: Tensor, b_or: Tensor, scale: float) -> Tensor:
    """Lengths of the rows of ``W + scale * B A``, [o], at least fp32.

    ``|w + s b A|^2 = |w|^2 + 2 s b . (A w) + s^2 b (A A^T) b^T``: no matrix of W's size is made.
    """
    b_or, a_ri = wide(b_or) * scale, wide(a_ri)
    cross_or = wide(weight_oi @ a_ri.to(weight_oi.dtype).t())
    squared_o = torch.linalg.vector_norm(weight_oi, dim=1, dtype=b_or.dtype).square()
    squared_o = squared_o + (b_or * (2 * cross_or + b_or @ (a_ri @ a_ri.t()))).sum(dim=1)
    return squared_o.clamp(min=0).sqrt()
