"""Dequantising on a CUDA device against the CPU, to the bit: both make the same products in fp32 and round them alike."""

from __future__ import annotations

import pytest
import torch
from support.quantised import fp8_weight, nvfp4_weight

from ms4_kernels.quantised import fit_fp8_scale, quantise_fp8, quantised_linear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [fp8_weight, nvfp4_weight])
def test_equals_the_cpu(make, dtype):
    weight = make(4, 512, 1024, groups=2)
    assert torch.equal(weight.to("cuda").dequantise(dtype).cpu(), weight.dequantise(dtype))


def test_quantising_equals_the_cpu():
    weight = torch.randn(512, 1024)
    scale = fit_fp8_scale(weight)
    assert torch.equal(fit_fp8_scale(weight.cuda()).cpu(), scale)
    assert torch.equal(quantise_fp8(weight.cuda(), scale.cuda()).cpu(), quantise_fp8(weight, scale))


def test_backward_runs():
    x = torch.randn(3, 64, device="cuda", requires_grad=True)
    quantised_linear(x, fp8_weight(32, 64).to("cuda")).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
