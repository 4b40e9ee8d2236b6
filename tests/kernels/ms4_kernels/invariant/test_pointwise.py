"""Functions of single numbers: the same digits wherever a number lies; and the control that torch's own have others."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.invariant import batch_invariant, pointwise

ATEN = torch.ops.aten
NAMES = ("exp", "log", "log1p", "sigmoid", "silu", "tanh", "gelu", "erf", "cos", "sin", "rsqrt")


def function(name):
    return getattr(ATEN, name).default


def differing(name, dtype, length) -> int:
    """How many of 20,000 numbers have another digit when they come ``length`` at a time, or turned around in memory."""
    x = torch.linspace(0.01, 6, 20000).to(dtype)
    whole = function(name)(x)
    parts = torch.cat([function(name)(part) for part in x.split(length)])
    turned = function(name)(x.view(100, 200).t()).t().flatten()
    return int((whole != parts).sum() + (whole != turned).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_digits_do_not_depend_on_the_place(name, dtype):
    with batch_invariant():
        assert differing(name, dtype, 501) == 0


def test_control_torchs_own_do():
    # At least one of those that do with AVX-512.
    assert differing("sigmoid", torch.float32, 5) or differing("rsqrt", torch.bfloat16, 5)


def test_values_are_torchs():
    x = torch.randn(3, 700)[:, ::7].abs()
    with batch_invariant():
        found = [function(name)(x) for name in NAMES]
        gelu = torch.nn.functional.gelu(x, approximate="tanh")
    for name, mine in zip(NAMES, found, strict=True):
        # Two implementations of a function in one type differ in the last place.
        torch.testing.assert_close(mine, function(name)(x), rtol=3e-7, atol=1e-7)
    torch.testing.assert_close(gelu, torch.nn.functional.gelu(x, approximate="tanh"), rtol=3e-7, atol=1e-7)


def test_forms_that_change_their_argument():
    x = torch.randn(40)
    wanted = x.exp()
    with batch_invariant():
        found = x.exp_()
    assert found is x
    torch.testing.assert_close(x, wanted)


def test_nothing_and_one_number():
    assert pointwise.apply(ATEN.exp.default, torch.empty(0, 3)).shape == (0, 3)
    assert pointwise.apply(ATEN.exp.default, torch.tensor(0.0)) == 1
