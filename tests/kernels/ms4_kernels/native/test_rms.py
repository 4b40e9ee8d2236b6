"""The compiled RMSNorm against torch's formula in fp64, on rows of a wider matrix too, and the same bits in any company."""

import pytest
import torch

from ms4_kernels.native import library
from ms4_kernels.native.rms import rms_norm, serves_rms

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler")


def formula(x, weight, eps):
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def made(rows, columns, *, wider=0):
    generator = torch.Generator().manual_seed(rows + columns)
    whole = torch.randn(rows, columns + wider, generator=generator)
    return whole[:, :columns], torch.randn(columns, generator=generator), torch.randn(rows, columns, generator=generator)


@pytest.mark.parametrize("rows", [1, 63, 64, 200])
@pytest.mark.parametrize(("columns", "wider"), [(3, 0), (15, 0), (16, 0), (64, 32), (256, 0), (1000, 3)])
def test_equals_fp64_forward_and_backward(rows, columns, wider):
    """A row sums at most 1,000 terms in fp32, a weight's gradient 200: far below 1e-5 of the largest value."""
    x, weight, grad = made(rows, columns, wider=wider)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    wide_x, wide_weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    assert serves_rms(x, weight)
    y, expected = rms_norm(x, weight, 1e-5), formula(wide_x, wide_weight, 1e-5)
    ours = torch.autograd.grad(y, (x, weight), grad)
    theirs = torch.autograd.grad(expected, (wide_x, wide_weight), grad.double())
    for mine, other in zip((y, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=1e-5 * other.detach().abs().max().item())


def test_a_row_does_not_depend_on_its_company_or_on_threads():
    x, weight, _ = made(300, 100)
    before, whole = torch.get_num_threads(), rms_norm(x, weight, 1e-6)
    try:
        torch.set_num_threads(3)
        assert torch.equal(rms_norm(x, weight, 1e-6), whole)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(rms_norm(x[17:18], weight, 1e-6), whole[17:18])


def test_a_frozen_weight_gets_no_gradient():
    x, weight, grad = made(70, 32)
    x.requires_grad_()
    rms_norm(x, weight, 1e-6).backward(grad)
    assert x.grad is not None
    assert weight.grad is None


def test_what_is_not_served():
    x, weight, _ = made(4, 8)
    assert serves_rms(x, weight)
    assert not serves_rms(x.bfloat16(), weight.bfloat16())
    assert not serves_rms(x.double(), weight.double())
    assert not serves_rms(x[0], weight)
    assert not serves_rms(x.t().contiguous().t(), weight)
    assert not serves_rms(x.to("meta"), weight.to("meta"))
