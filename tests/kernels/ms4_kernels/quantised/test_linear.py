"""The quantised linear layer against ``F.linear`` over the dequantised matrix, and what it keeps for the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.quantised import fp8_weight, nvfp4_weight
from torch.utils.checkpoint import checkpoint

from ms4_kernels.quantised import quantised_linear

KINDS = pytest.mark.parametrize("make", [fp8_weight, nvfp4_weight])


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [(), (0,), (5,), (2, 3)])
def test_equals_linear_over_the_values(make, dtype, rows):
    weight = make(24, 32)
    x = torch.randn(*rows, 32).to(dtype).requires_grad_()
    reference = x.detach().clone().requires_grad_()
    y, expected = quantised_linear(x, weight), F.linear(reference, weight.dequantise(dtype))
    assert torch.equal(y, expected)  # the same product of the same numbers
    gradient = torch.randn_like(expected)
    y.backward(gradient)
    expected.backward(gradient)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, reference.grad)  # the same sums, possibly in another order


@KINDS
def test_gradient_by_finite_differences(make):
    weight = make(6, 16)
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: quantised_linear(x, weight), x)


@KINDS
def test_only_codes_and_scales_are_kept(make):
    weight = make(512, 256)  # 2^17 codes: the tables' path
    x = torch.randn(4, 256, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        quantised_linear(x, weight)
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == weight.num_bytes
    assert {tensor.data_ptr() for tensor in kept} == {part.data_ptr() for part in weight.tensors}  # not even copies of those

    kept.clear()  # negative control: what F.linear over the values keeps
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.linear(x, weight.dequantise(x.dtype))
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) >= 2 * 512 * 256


def test_no_gradient_no_second_decoding(monkeypatch):
    weight = fp8_weight(8, 16)
    calls = []
    original = type(weight).dequantise
    monkeypatch.setattr(type(weight), "dequantise", lambda self, dtype: calls.append(dtype) or original(self, dtype))
    bias = torch.zeros(8, requires_grad=True)
    (quantised_linear(torch.randn(2, 16), weight) + bias).sum().backward()
    assert len(calls) == 1


@KINDS
def test_under_checkpointing_and_deterministic_algorithms(make):
    weight = make(512, 256)
    x = torch.randn(4, 256, requires_grad=True)
    quantised_linear(x, weight).square().sum().backward()
    expected, x.grad = x.grad, None
    torch.use_deterministic_algorithms(True)
    try:
        checkpoint(lambda x: quantised_linear(x, weight).square().sum(), x, use_reentrant=False).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(x.grad, expected)
