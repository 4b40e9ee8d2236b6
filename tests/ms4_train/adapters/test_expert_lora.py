"""The adapter of stacked experts against plain arithmetic on merged stacks, in fp64."""

import math

import pytest
import torch
from support.models import tiny_config

from ms4_train.adapters.adapted import Low
from ms4_train.adapters.expert_lora import StackedLora, StackFactors
from ms4_train.model import Mistral4Experts

EXPERTS, RANK, HIDDEN, WIDTH = 8, 3, 64, 32


def lora(dtype=torch.float64, kind=StackedLora, **which):
    like = torch.empty(0, dtype=dtype)
    return kind(EXPERTS, HIDDEN, WIDTH, like=like, **({"gate_up": Low(RANK, 1.7), "down": Low(RANK + 1, 0.6)} | which))


def random_experts():
    experts = Mistral4Experts(tiny_config(), "reference").double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    expert_ids_tk = torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(11)])
    return experts, (torch.randn(11, HIDDEN, dtype=torch.float64), expert_ids_tk, torch.rand(11, 2))


def test_shapes_and_start():
    module = lora(torch.float32)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == {
        "gate_up_a_erd": (EXPERTS, RANK, HIDDEN),
        "gate_up_b_eir": (EXPERTS, 2 * WIDTH, RANK),
        "down_a_ern": (EXPERTS, RANK + 1, WIDTH),
        "down_b_edr": (EXPERTS, HIDDEN, RANK + 1),
    }
    for (a_eri, b_eor), inputs in zip(module.pairs().values(), (HIDDEN, WIDTH), strict=True):
        assert not b_eor.any()
        assert a_eri.abs().max() <= 1 / math.sqrt(inputs)
        assert a_eri.std().item() == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.1)


@pytest.mark.parametrize("which", [{}, {"gate_up": None}, {"down": None}])
def test_experts_with_adapter_equal_experts_with_merged_stacks(which):
    torch.manual_seed(0)
    experts, given = random_experts()
    module = lora(**which)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    experts.lora = module
    with torch.no_grad():
        adapted = experts(*given)
        for stack, (a_eri, b_eor) in module.pairs().items():
            scale = {"gate_up_proj": 1.7, "down_proj": 0.6}[stack]
            getattr(experts, stack).add_(scale * torch.einsum("eor,eri->eoi", b_eor, a_eri))
        experts.lora = None
        assert torch.allclose(adapted, experts(*given), rtol=1e-10, atol=1e-12)
    assert set(module.pairs()) == {"gate_up_proj", "down_proj"} - {f"{key}_proj" for key in which}


def test_several_adapters_add_up_and_rest_while_merged():
    torch.manual_seed(0)
    experts, given = random_experts()
    module = lora(down=None)
    module.further["second"] = lora(kind=StackFactors)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    experts.lora = module
    with torch.no_grad():
        base, results = experts.gate_up_proj.clone(), {}
        for active in ((), ("default",), ("second",), ("default", "second")):
            module.active = active
            results[active] = experts(*given)
        module.unmerged = {"gate_up_proj": base}
        assert torch.equal(experts(*given), results[()])
        experts.lora = None
        for factors in (module, module.of("second")):
            for stack, (a_eri, b_eor) in factors.pairs().items():
                getattr(experts, stack).add_(factors.stack_scales[stack] * torch.einsum("eor,eri->eoi", b_eor, a_eri))
        assert torch.allclose(results["default", "second"], experts(*given), rtol=1e-10, atol=1e-12)
    assert module.adapters == ("default", "second")
    assert not torch.allclose(results[("default",)], results[("second",)])


def test_default_may_come_after_another():
    module = lora(gate_up=None, down=None)
    assert module.adapters == module.active == ()
    assert module.kernel_lora() is None
    factors = lora(kind=StackFactors)
    module.take_default(factors)
    assert module.adapters == ("default",)
    assert module.pairs()["down_proj"][0] is factors.down_a_ern
    assert module.own_lora().down_scale == 0.6
