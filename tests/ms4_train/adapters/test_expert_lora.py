"""The adapter of stacked experts against plain arithmetic on merged stacks, in fp64."""

import math

import pytest
import torch
from support.models import tiny_config

from ms4_train.adapters.expert_lora import StackedLora, add_product
from ms4_train.model import Mistral4Experts

EXPERTS, RANK, HIDDEN, WIDTH = 8, 3, 64, 32


def lora(dtype=torch.float64, **which):
    like = torch.empty(0, dtype=dtype)
    return StackedLora(EXPERTS, HIDDEN, WIDTH, rank=RANK, scale=1.7, like=like, **({"gate_up": True, "down": True} | which))


def test_shapes_and_start():
    module = lora(torch.float32)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == {
        "gate_up_a_erd": (EXPERTS, RANK, HIDDEN),
        "gate_up_b_eir": (EXPERTS, 2 * WIDTH, RANK),
        "down_a_ern": (EXPERTS, RANK, WIDTH),
        "down_b_edr": (EXPERTS, HIDDEN, RANK),
    }
    for (a_eri, b_eor), inputs in zip(module.pairs().values(), (HIDDEN, WIDTH), strict=True):
        assert not b_eor.any()
        assert a_eri.abs().max() <= 1 / math.sqrt(inputs)
        assert a_eri.std().item() == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.1)


@pytest.mark.parametrize("which", [{}, {"gate_up": False}, {"down": False}])
def test_experts_with_adapter_equal_experts_with_merged_stacks(which):
    torch.manual_seed(0)
    experts = Mistral4Experts(tiny_config(), "reference").double()
    module = lora(**which)
    for parameter in [*experts.parameters(), *module.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    hidden_td = torch.randn(11, HIDDEN, dtype=torch.float64)
    expert_ids_tk = torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(11)])
    weights_tk = torch.rand(11, 2)
    experts.lora = module
    with torch.no_grad():
        adapted = experts(hidden_td, expert_ids_tk, weights_tk)
        for stack, (a_eri, b_eor) in module.pairs().items():
            getattr(experts, stack).add_(1.7 * torch.einsum("eor,eri->eoi", b_eor, a_eri))
        experts.lora = None
        assert torch.allclose(adapted, experts(hidden_td, expert_ids_tk, weights_tk), rtol=1e-10, atol=1e-12)
    assert set(module.pairs()) == {"gate_up_proj", "down_proj"} - {f"{key}_proj" for key in which}


def test_product_is_added_in_fp32_and_rounded_once():
    torch.manual_seed(1)
    stack_eoi = torch.randn(2, 5, 7).bfloat16()
    a_eri, b_eor = torch.randn(2, 3, 7).bfloat16(), torch.randn(2, 5, 3).bfloat16()
    expected = (stack_eoi.double() + 0.37 * torch.einsum("eor,eri->eoi", b_eor.double(), a_eri.double())).bfloat16()
    add_product(stack_eoi, a_eri, b_eor, 0.37)
    # fp64 and fp32 sums may round to neighbouring bf16 values, one in 2**16 of the time
    assert torch.allclose(stack_eoi.float(), expected.float(), rtol=2**-8)
    assert (stack_eoi == expected).float().mean() > 0.95
