"""Lengths of rows without the matrix, and DoRA's layer against PEFT's, dropout included."""

import pytest
import torch
from support.checkpoints import relative_error

from ms4_train.adapters.dora import Magnitude, row_lengths
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.model.linear import Linear


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_row_lengths_are_those_of_the_sum(dtype, close):
    """bf16: the cross term is rounded to 8 bits."""
    weight, a, b = torch.randn(33, 20).to(dtype), torch.randn(3, 20).to(dtype), torch.randn(33, 3).to(dtype)
    exact = (weight.double() + 0.7 * b.double() @ a.double()).norm(dim=1)
    found = row_lengths(weight, a, b, 0.7)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative_error(found.double(), exact) < close


def test_rows_that_cancel_have_length_zero_and_no_nan():
    a, b = torch.eye(3), torch.ones(2, 3)
    assert row_lengths(-b @ a, a, b, 1.0).tolist() == [0.0, 0.0]


def test_magnitude_is_a_factor_per_row():
    assert Magnitude(torch.tensor([2.0, 3.0]))(torch.tensor([4.0, 1.0])).tolist() == [0.5, 3.0]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("training", [True, False])
def test_layer_equals_pefts(dropout, training):
    from peft import LoraConfig
    from peft.tuners.lora import Linear as PeftLinear

    torch.manual_seed(0)
    base = Linear(24, 16)
    torch.nn.init.normal_(base.weight)
    base.weight.requires_grad_(False)
    ours = LoraLinear(base, rank=4, scale=2.0, dropout=dropout)
    torch.nn.init.normal_(ours.a_ri)
    torch.nn.init.normal_(ours.b_or)
    ours.add_magnitude("default")
    theirs = PeftLinear(base, "default", config=LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, use_dora=True), r=4, lora_alpha=8)
    with torch.no_grad():
        ours.lora_magnitude_vector["default"].weight.mul_(torch.linspace(0.5, 1.5, 16))
        theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if "base_layer" not in name}, strict=False)
    x = torch.randn(7, 24, requires_grad=True)
    results = []
    for layer in (ours.train(training), theirs.train(training)):
        torch.manual_seed(5)  # of the dropout
        y = layer(x)
        factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_magnitude_vector["default"].weight]
        results.append([y, *torch.autograd.grad((y * torch.linspace(-1, 1, 16)).sum(), [x, *factors])])
    for mine, peft in zip(*results, strict=True):
        assert relative_error(mine.detach(), peft.detach()) < 1e-5
