"""The compiled rotation against the rotation of complex numbers, and its transpose against autograd's."""

import pytest
import torch

from ms4_kernels.native import library
from ms4_kernels.native.rotary import rotate_tail, serves_rotation

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler")


def made(tokens, heads, width, lanes):
    generator = torch.Generator().manual_seed(tokens * width)
    angle_tf = torch.randn(tokens, lanes // 2, generator=generator) * 3
    cos, sin = angle_tf.cos(), angle_tf.sin()
    tables = cos.repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(-2)
    return torch.randn(tokens, heads, width, generator=generator), angle_tf, tables


def turned(x, angle_tf):
    """Pairs as complex numbers times exp(i angle), in fp64."""
    lanes = 2 * angle_tf.shape[1]
    kept, tail = x.double().split((x.shape[-1] - lanes, lanes), dim=-1)
    pairs = torch.view_as_complex(tail.unflatten(-1, (-1, 2)).contiguous())
    unit = torch.polar(torch.ones_like(angle_tf, dtype=torch.float64), angle_tf.double())[:, None]
    return torch.cat((kept, torch.view_as_real(pairs * unit).flatten(-2)), dim=-1)


@pytest.mark.parametrize(("tokens", "heads", "width", "lanes"), [(1, 1, 2, 2), (5, 3, 10, 4), (130, 4, 48, 32), (64, 2, 32, 32)])
def test_equals_complex_multiplication_and_its_gradient(tokens, heads, width, lanes):
    """Two products and a sum in fp32: 1e-6 of values near 1."""
    x, angle_tf, (cos, sin) = made(tokens, heads, width, lanes)
    assert serves_rotation(x, cos, sin)
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    y, expected = rotate_tail(x, cos, sin), turned(wide, angle_tf)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=3e-6)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (mine,), (other,) = torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, wide, grad.double())
    torch.testing.assert_close(mine.double(), other, rtol=0, atol=3e-6)


def test_what_is_not_served():
    x, _, (cos, sin) = made(6, 2, 8, 4)
    assert serves_rotation(x, cos, sin)
    assert not serves_rotation(x.bfloat16(), cos, sin)
    assert not serves_rotation(x.transpose(0, 1).contiguous().transpose(0, 1), cos, sin)
    assert not serves_rotation(x[:5], cos, sin)
    assert not serves_rotation(x[..., :2].contiguous(), cos, sin)
