"""RMSNorm. Exercise it: ``pytest tests/ms4_train/model/test_norm.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ms4_kernels.native.rms import rms_norm, serves_rms


class RMSNorm(nn.Module):
    """Divide by the root mean square in fp32 or wider, cast back, then multiply by the weight (the order of spec section 2.1)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; same shape and type as ``x``."""
        if serves_rms(x, self.weight):
            return rms_norm(x, self.weight, self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)
