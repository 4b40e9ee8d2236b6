"""The linear layer against torch's: values, gradients, what it keeps, and what it leaves to torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ms4_kernels.native import library
from ms4_kernels.native.linear import linear, lora_linear, serves, serves_lora

needs_library = pytest.mark.skipif(library() is None, reason="no C compiler")


def run(function, x, weight_oi):
    y = function(x, weight_oi)
    return [y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.shape[-1])).sum(), [z for z in (x, weight_oi) if z.requires_grad])]


@needs_library
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(200, 128), (2, 100, 128)])
def test_equals_torch(shape, wanted):
    x, weight_oi = torch.randn(shape).requires_grad_(wanted[0]), torch.randn(96, 128).requires_grad_(wanted[1])
    actual = run(linear, x, weight_oi)
    assert "_Linear" in type(actual[0].grad_fn).__name__  # the compiled products did it
    for ours, torchs in zip(actual, run(F.linear, x, weight_oi), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-4)  # fp32, sums of 128 or 200 terms


@needs_library
@pytest.mark.parametrize(("wanted", "kept"), [((True, False), "weight"), ((False, True), "x")])
def test_keeps_what_the_gradients_need(wanted, kept):
    x, weight_oi = torch.randn(200, 128).requires_grad_(wanted[0]), torch.randn(96, 128).requires_grad_(wanted[1])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: saved.append(z.data_ptr()), lambda z: z):
        linear(x, weight_oi)
    assert saved == [{"x": x, "weight": weight_oi}[kept].data_ptr()]


@needs_library
def test_a_strided_gradient():
    x, weight_oi = torch.randn(200, 128, requires_grad=True), torch.randn(96, 128, requires_grad=True)
    (dx,) = torch.autograd.grad(linear(x, weight_oi).sum(), x)  # sum's gradient is one number expanded
    torch.testing.assert_close(dx, weight_oi.sum(0).expand(200, 128), rtol=1e-5, atol=1e-4)


def test_what_is_left_to_torch():
    x, weight_oi = torch.randn(200, 128), torch.randn(96, 128)
    assert not serves(x.double(), weight_oi.double())
    assert not serves(x, torch.randn(128, 96).t())
    assert torch.equal(linear(torch.cat((x, x), dim=1)[:, :128], weight_oi), linear(x, weight_oi))  # part of wider rows
    assert not serves(x.to("meta"), weight_oi.to("meta"))
    with torch.autocast("cpu"):
        assert not serves(x, weight_oi)
        assert linear(x, weight_oi).dtype == torch.bfloat16
    few = x[:3].requires_grad_()
    assert "_Linear" not in type(linear(few, weight_oi).grad_fn).__name__
    assert linear(torch.empty(0, 128), weight_oi).shape == (0, 96)


def explicit(x, weight_oi, a_ri, b_or, scale):
    return F.linear(x, weight_oi + scale * b_or @ a_ri)


@needs_library
@pytest.mark.parametrize(("rows", "outputs", "inputs", "rank"), [(200, 96, 128, 16), (65, 130, 70, 3), (97, 64, 300, 128)])
def test_low_rank_update_equals_the_folded_weight(rows, outputs, inputs, rank):
    shapes = ((rows, inputs), (outputs, inputs), (rank, inputs), (outputs, rank))
    tensors = [torch.randn(shape).requires_grad_() for shape in shapes]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    results = []
    for function, arguments in ((lora_linear, tensors), (explicit, wide)):
        y = function(*arguments, 0.5)
        results.append([y, *torch.autograd.grad((y * torch.linspace(-1, 1, outputs, dtype=y.dtype)).sum(), arguments)])
    for ours, truth in zip(*results, strict=True):
        assert (ours.double() - truth).norm() <= 1e-6 * truth.norm()  # a dozen units of fp32's last place


@needs_library
def test_low_rank_gradients_nobody_wants_are_not_made():
    x, weight_oi = torch.randn(200, 128), torch.randn(96, 128)
    a_ri, b_or = torch.randn(16, 128, requires_grad=True), torch.randn(96, 16, requires_grad=True)
    lora_linear(x, weight_oi, a_ri, b_or, 2.0).sum().backward()
    assert weight_oi.grad is None
    assert x.grad is None
    expected = torch.autograd.grad(explicit(x, weight_oi, a_ri, b_or, 2.0).sum(), [a_ri, b_or])
    torch.testing.assert_close([a_ri.grad, b_or.grad], list(expected), rtol=1e-4, atol=1e-2)  # fp32, sums of 200 * 96 terms up to 1e3


@needs_library
def test_a_fresh_adapter_changes_no_bit():
    x, weight_oi, a_ri = torch.randn(200, 128), torch.randn(96, 128), torch.randn(16, 128)
    assert torch.equal(lora_linear(x, weight_oi, a_ri, torch.zeros(96, 16), 2.0), linear(x, weight_oi))


def test_low_rank_needs_its_factors_in_fp32():
    x, weight_oi, a_ri, b_or = torch.randn(200, 128), torch.randn(96, 128), torch.randn(16, 128), torch.randn(96, 16)
    assert serves_lora(x, weight_oi, a_ri, b_or) == (library() is not None)
    assert not serves_lora(x, weight_oi, a_ri.bfloat16(), b_or.bfloat16())
    assert not serves_lora(x[:3], weight_oi, a_ri, b_or)


@pytest.mark.parametrize("bad", ["width", "a", "b"])
def test_what_does_not_fit_is_left_to_torchs_own_error(bad):
    x, weight_oi = torch.randn(512, 300 if bad == "width" else 256), torch.randn(200, 256)
    a_ri, b_or = torch.randn(8, 16 if bad == "a" else 256), torch.randn(256 if bad == "b" else 200, 8)
    assert not serves_lora(x, weight_oi, a_ri, b_or)
    if bad == "width":
        assert not serves(x, weight_oi)
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            linear(x, weight_oi)


def test_what_has_no_memory_of_its_own_is_left_to_torch():
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, weight_oi = torch.randn(512, 256), torch.randn(200, 256)
    assert not serves_lora(x, weight_oi, torch.randn(8, 256, device="meta"), torch.randn(200, 8))
    with FakeTensorMode() as mode:
        assert linear(mode.from_tensor(x), mode.from_tensor(weight_oi)).shape == (512, 200)
    gradient = torch.func.grad(lambda w: linear(x, w).square().sum())(weight_oi)
    torch.testing.assert_close(gradient, 2 * (x @ weight_oi.t()).t() @ x, rtol=1e-4, atol=1e-1)  # fp32, sums of 512 products up to 1e3
