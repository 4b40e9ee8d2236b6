"""LoRA on a router: the routing of the dense sum, in fp32 whatever the model's type; gradients reach both factors."""

import pytest
import torch
from support.models import tiny_config

from ms4_train.adapters.router_lora import LoraRouter
from ms4_train.model.moe import Mistral4Router
from ms4_train.model.router_terms import RouterRecorder


def router(dtype=torch.float32, names=("default",)):
    torch.manual_seed(2)
    base = Mistral4Router(tiny_config())
    torch.nn.init.normal_(base.weight, std=0.2)
    module = LoraRouter(base.to(dtype).requires_grad_(False))
    for name in names:
        module.add(name, rank=3, scale=1.5)
        torch.nn.init.normal_(module.lora_A[name].weight, std=0.3)
        torch.nn.init.normal_(module.lora_B[name].weight, std=0.3)
    module.active = tuple(names)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("names", [("default",), ("default", "second")])
def test_routes_as_the_sum_does(dtype, names):
    module, hidden_td = router(dtype, names), torch.randn(40, 64).to(dtype)
    dense = Mistral4Router(tiny_config())
    dense.weight.data = module.changed_weight().detach()  # fp32, where a bf16 sum would be rounded
    weights_tk, ids_tk = module(hidden_td)
    expected_tk, expected_ids_tk = dense(hidden_td.float())
    assert weights_tk.dtype == torch.float32
    assert torch.equal(ids_tk, expected_ids_tk)
    torch.testing.assert_close(weights_tk, expected_tk)
    assert not torch.equal(ids_tk, module.base_layer(hidden_td)[1])  # the adapter does something


def test_gradients_are_those_of_the_sum():
    module, hidden_td = router(), torch.randn(40, 64)
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    found = torch.autograd.grad(module(hidden_td)[0][:, 0].sum(), (a, b))
    weight = {"weight": module.base_layer.weight + 1.5 * b @ a}
    weights_tk, _ = torch.func.functional_call(module.base_layer, weight, (hidden_td,))
    for mine, exact in zip(found, torch.autograd.grad(weights_tk[:, 0].sum(), (a, b)), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-5)


def test_router_losses_see_the_adapters_logits():
    module, hidden_td = router(), torch.randn(5, 64)
    recorder = RouterRecorder(probabilities=True, squared_z=False)
    module.base_layer.recorder = recorder
    with recorder.recording():
        module(hidden_td)
    expected = (hidden_td @ module.changed_weight().t()).softmax(dim=-1).sum(dim=0)
    torch.testing.assert_close(recorder.probabilities[0], expected)
