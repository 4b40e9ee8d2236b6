"""Sums, means and softmax beside torch's in fp64, alone and among other rows to the bit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ms4_kernels.invariant import batch_invariant

FUNCTIONS = {
    "sum": lambda x: x.sum(-1),
    "kept sum": lambda x: x.sum(dim=-1, keepdim=True),
    "mean of squares": lambda x: x.square().mean(dim=-1, keepdim=True),
    "softmax": lambda x: x.softmax(-1),
    "log softmax": lambda x: F.log_softmax(x, dim=-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "sum in fp32": lambda x: x.sum(-1, dtype=torch.float32),
    "softmax in fp32": lambda x: x.softmax(-1, dtype=torch.float32),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("length", [1, 5, 133, 4096])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_near_fp64_and_the_same_among_others(name, length, dtype):
    x = torch.randn(9, length).to(dtype)
    with batch_invariant():
        together = FUNCTIONS[name](x)
        alone = [FUNCTIONS[name](x[row : row + 1]) for row in range(9)]
        middle = FUNCTIONS[name](x[3:6])
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[3:6], middle)
    plain = FUNCTIONS[name](x)
    assert (together.dtype, together.shape) == (plain.dtype, plain.shape)
    exact = FUNCTIONS[name](x.double()).double()
    # Twice torch's own error, or a few roundings of the largest value where torch happens to be exact.
    bound = 2 * (plain.double() - exact).abs().max() + 4 * torch.finfo(together.dtype).eps * exact.abs().max()
    assert (together.double() - exact).abs().max() <= bound


def test_several_axes_and_none():
    x = torch.randn(3, 5, 7)
    with batch_invariant():
        found = [x.sum((0, 2)), x.sum((0, 2), keepdim=True), x.mean((1, 2)), x.logsumexp((0, 2)), torch.ops.aten.sum.dim_IntList(x, [])]
    wanted = [x.sum((0, 2)), x.sum((0, 2), keepdim=True), x.mean((1, 2)), x.logsumexp((0, 2)), x.sum()]
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_infinities_and_integers():
    x = torch.tensor([[-torch.inf, 0.0, 1.0], [-torch.inf] * 3, [torch.inf, 0.0, 1.0]])
    with batch_invariant():
        found = x.softmax(-1), x.log_softmax(-1), x.logsumexp(-1), torch.arange(6).view(2, 3).sum(-1), x[:, :0].sum(-1)
    wanted = x.softmax(-1), x.log_softmax(-1), x.logsumexp(-1), torch.tensor([3, 12]), torch.zeros(3)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True)
