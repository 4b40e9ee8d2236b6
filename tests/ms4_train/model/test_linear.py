"""The network's linear layer is torch's in all but who multiplies."""

from __future__ import annotations

import torch
from torch import nn

from ms4_train.model.linear import Linear


def test_is_a_linear_layer():
    ours, torchs = Linear(128, 96), nn.Linear(128, 96, bias=False)
    torchs.load_state_dict(ours.state_dict())
    assert isinstance(ours, nn.Linear)
    assert ours.bias is None
    x = torch.randn(2, 100, 128)
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-5, atol=1e-5)  # fp32, sums of 128 terms
