"""The mixture-of-experts block against transformers', its counters, and its two hooks."""

from __future__ import annotations

import pytest
import torch
from support.models import hf_config, tiny_config
from support.stay_home import StayHome
from torch import nn

from ms4_kernels.moe import ExpertLora
from ms4_train.model.moe import GatedMLP, Mistral4MoE, Mistral4Router

CONFIG = tiny_config(n_shared_experts=2, routed_scaling_factor=1.5)


@pytest.fixture
def block():
    block = Mistral4MoE(CONFIG)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    return block


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_equals_transformers(block, backend):
    from transformers.models.mistral4.modeling_mistral4 import Mistral4MoE as Oracle

    block.experts.backend = backend
    oracle = Oracle(hf_config(CONFIG))
    oracle.load_state_dict(block.state_dict())
    hidden_td = torch.randn(50, CONFIG.hidden_size)
    torch.testing.assert_close(block(hidden_td), oracle(hidden_td[None])[0], rtol=1e-5, atol=1e-5)  # fp32, another order of adding


def test_counts_are_those_of_the_last_forward(block):
    assert block.expert_counts_e is None
    for tokens in (30, 12):
        hidden_td = torch.randn(tokens, CONFIG.hidden_size)
        block(hidden_td)
        ids_tk = (hidden_td @ block.gate.weight.t()).topk(CONFIG.num_experts_per_tok).indices
        assert block.expert_counts_e.tolist() == [int((ids_tk == e).sum()) for e in range(CONFIG.n_routed_experts)]


def test_router_logits_are_fp32_in_a_bf16_model():
    router = Mistral4Router(CONFIG).to(torch.bfloat16)
    nn.init.normal_(router.weight)
    hidden_td = torch.randn(40, CONFIG.hidden_size).to(torch.bfloat16)
    weights_tk, ids_tk = router(hidden_td)
    probabilities_te = (hidden_td.double() @ router.weight.double().t()).softmax(dim=-1)
    expected_tk, expected_ids_tk = probabilities_te.topk(CONFIG.num_experts_per_tok)
    assert weights_tk.dtype == torch.float32
    assert torch.equal(ids_tk, expected_ids_tk)
    expected_tk = 1.5 * expected_tk / expected_tk.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(weights_tk.double(), expected_tk, rtol=1e-5, atol=1e-5)  # bf16 logits would miss by 1e-2


@pytest.mark.parametrize("whole_block", [True, False])
def test_exchange_gets_the_routing_and_the_local_experts(block, whole_block):
    hidden_td = torch.randn(10, CONFIG.hidden_size)
    weights_tk, ids_tk = block.gate(hidden_td)
    arguments = (hidden_td,) if whole_block else (hidden_td, ids_tk, weights_tk)
    module = block if whole_block else block.experts
    expected_td = module(*arguments)
    exchange = block.experts.exchange = StayHome(rows=5)
    torch.testing.assert_close(module(*arguments), expected_td, rtol=1e-5, atol=1e-5)  # fp32 products of other row counts
    assert exchange.calls == [((10, CONFIG.hidden_size), (10, 2), (10, 2))]


def test_tokens_under_way_are_awaited_when_the_shared_expert_fails(block):
    exchange = block.experts.exchange = StayHome(rows=5)
    block.shared_experts.down_proj.weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(RuntimeError, match="shape"):
        block(torch.randn(10, CONFIG.hidden_size))
    assert exchange.calls[1:] == ["abandoned"]


class StackLora(nn.Module):
    """What an adapter puts beside the stacks."""

    def __init__(self, experts):
        super().__init__()
        num_experts, width, hidden_size = experts.gate_up_proj.shape
        self.a = nn.Parameter(torch.randn(num_experts, 2, hidden_size))
        self.b = nn.Parameter(torch.randn(num_experts, width, 2))

    def kernel_lora(self):
        return ExpertLora(self.a, self.b, gate_up_scale=0.3)


@torch.no_grad()
def test_adapter_on_the_stacks_equals_folded_weights(block):
    hidden_td = torch.randn(20, CONFIG.hidden_size)
    lora = block.experts.lora = StackLora(block.experts)
    adapted_td = block(hidden_td)
    block.experts.lora = None
    block.experts.gate_up_proj += 0.3 * lora.b @ lora.a
    torch.testing.assert_close(adapted_td, block(hidden_td), rtol=1e-4, atol=1e-4)  # fp32 products of another association
    assert block.experts.num_local_experts == CONFIG.n_routed_experts


@torch.no_grad()
def test_a_prepared_mlp_computes_the_same_until_it_is_released():
    mlp, hidden_td = GatedMLP(64, 48), torch.randn(7, 64)
    expected_td = mlp(hidden_td)
    mlp.prepare_decode()
    torch.testing.assert_close(mlp(hidden_td), expected_td, rtol=1e-5, atol=1e-6)  # fp32, sums of 64 terms in another order at most
    mlp.gate_proj.weight.mul_(2)
    torch.testing.assert_close(mlp(hidden_td), expected_td, rtol=1e-5, atol=1e-6)  # why it must be released when weights change
    mlp.release_decode()
    assert not torch.allclose(mlp(hidden_td), expected_td)
