"""The network's linear layers. Exercise it: ``pytest tests/ms4_train/model/test_linear.py``."""

from __future__ import annotations

from torch import Tensor, nn

from ms4_kernels.native.linear import linear


class Linear(nn.Linear):
    """``x W^T`` without bias: an ``nn.Linear``, to PEFT for one, that multiplies by the compiled CPU kernels where they serve."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Apply to the last axis."""
        return linear(input, self.weight)
