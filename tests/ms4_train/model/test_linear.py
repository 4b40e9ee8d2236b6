"""The network's linear layer is torch's in all but who multiplies."""

from __future__ import annotations

import pytest
import torch
from support.quantised_models import quantised_tiny
from torch import nn

from ms4_train.model.linear import Linear, joined_weight


def test_is_a_linear_layer():
    ours, torchs = Linear(128, 96), nn.Linear(128, 96, bias=False)
    torchs.load_state_dict(ours.state_dict())
    assert isinstance(ours, nn.Linear)
    assert ours.bias is None
    x = torch.randn(2, 100, 128)
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-5, atol=1e-5)  # fp32, sums of 128 terms


def test_joined_layers_make_both_outputs_at_once():
    first, second = Linear(16, 24), Linear(16, 8)
    joined_oi = joined_weight(first, second)
    assert joined_oi is not None
    assert not joined_oi.requires_grad
    x = torch.randn(5, 16)
    expected = torch.cat((first(x), second(x)), dim=-1)
    torch.testing.assert_close(x @ joined_oi.t(), expected, rtol=1e-5, atol=1e-5)  # fp32, sums of 16 terms


@pytest.mark.parametrize("other", ["quantised", "wrapped", "hooked"])
def test_layers_that_are_not_plain_are_not_joined(other):
    plain, odd = Linear(64, 24), Linear(64, 24)
    if other == "quantised":
        odd = quantised_tiny("fp8").model.layers[0].self_attn.q_a_proj
    if other == "wrapped":
        odd = nn.Sequential(odd)
    if other == "hooked":
        odd.register_forward_hook(lambda module, inputs, output: None)
    assert joined_weight(plain, odd) is None
