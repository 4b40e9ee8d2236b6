"""The network's linear layers. Exercise it: ``pytest tests/ms4_train/model/test_linear.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ms4_kernels.native.linear import linear

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Linear(nn.Linear):
    """``x W^T`` without bias: an ``nn.Linear``, to PEFT for one, that multiplies by the compiled CPU kernels where they serve."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Apply to the last axis."""
        return linear(input, self.weight)


def joined_weight(*layers: nn.Module) -> Tensor | None:
    """A copy of the weights of layers that have one input, behind one another, so that one product makes all their outputs.

    None where a layer is not plain: quantised, adapted, sharded, or with a hook that wants to see its call.
    """
    if not all(type(layer) is Linear and layer.weight.ndim == 2 and not any(getattr(layer, kind) for kind in _HOOKS) for layer in layers):
        return None
    return torch.cat([layer.weight.detach() for layer in layers])  # type: ignore[misc]
