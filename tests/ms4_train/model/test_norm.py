"""RMSNorm against transformers': to the bit, but for the compiled kernel of fp32, whose sum runs in another order."""

from __future__ import annotations

import pytest
import torch

from ms4_train.model.norm import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_transformers(dtype):
    from transformers.models.mistral4.modeling_mistral4 import Mistral4RMSNorm

    ours, oracle = RMSNorm(24, 1e-5).to(dtype), Mistral4RMSNorm(24, 1e-5).to(dtype)
    torch.nn.init.normal_(ours.weight)
    oracle.load_state_dict(ours.state_dict())
    x = (100 * torch.randn(7, 24)).to(dtype)
    if dtype == torch.bfloat16:
        assert torch.equal(ours(x), oracle(x))
    else:
        torch.testing.assert_close(ours(x), oracle(x), rtol=5e-7, atol=0)  # four roundings of 2^-24 at most


def test_eps_matters_for_small_values():
    x = torch.full((1, 4), 1e-3)
    torch.testing.assert_close(RMSNorm(4, 1e-6)(x), torch.full((1, 4), 0.5**0.5))  # 1e-3 / sqrt(1e-6 + 1e-6)


def test_fp64_stays_fp64():
    norm = RMSNorm(6, 1e-6).double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
