"""The reference against transformers' experts, and its LoRA against weights with the product folded in."""

from __future__ import annotations

import torch

from ms4_kernels.moe import ExpertLora
from ms4_kernels.moe.reference import experts_reference


def test_equals_transformers():
    from transformers import Mistral4Config
    from transformers.models.mistral4.modeling_mistral4 import Mistral4Experts

    oracle = Mistral4Experts(Mistral4Config(hidden_size=12, moe_intermediate_size=6, n_routed_experts=5, experts_implementation="eager"))
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter)
    hidden_td, weights_tk = torch.randn(30, 12), torch.rand(30, 2)
    ids_tk = torch.rand(30, 5).topk(2).indices

    expected_td = oracle(hidden_td, ids_tk, weights_tk)
    out_td = experts_reference(hidden_td, oracle.gate_up_proj, oracle.down_proj, ids_tk, weights_tk)

    torch.testing.assert_close(out_td, expected_td, rtol=1e-5, atol=1e-5)  # fp32, another order of adding the slots
    expected = torch.autograd.grad(expected_td.square().sum(), oracle.parameters())
    actual = torch.autograd.grad(out_td.square().sum(), oracle.parameters())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)  # gradients reach 1e3 here


def test_lora_equals_folded_weights():
    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    hidden_td, gate_up_eid, down_edn = normal(20, 6), normal(4, 8, 6), normal(4, 6, 4)
    lora = ExpertLora(normal(4, 3, 6), normal(4, 8, 3), normal(4, 3, 4), normal(4, 6, 3), gate_up_scale=0.5, down_scale=2.0)
    ids_tk, weights_tk = torch.rand(20, 4).topk(2).indices, torch.rand(20, 2, dtype=torch.float64)
    folded_gate_up = gate_up_eid + 0.5 * lora.gate_up_b_eir @ lora.gate_up_a_erd
    folded_down = down_edn + 2.0 * lora.down_b_edr @ lora.down_a_ern

    out_td = experts_reference(hidden_td, gate_up_eid, down_edn, ids_tk, weights_tk, lora)

    expected_td = experts_reference(hidden_td, folded_gate_up, folded_down, ids_tk, weights_tk)
    torch.testing.assert_close(out_td, expected_td, rtol=1e-12, atol=1e-12)
