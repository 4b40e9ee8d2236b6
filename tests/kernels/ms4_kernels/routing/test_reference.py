"""The reference router against transformers' router, and its gradient by finite differences."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.routing.reference import route_reference


@pytest.mark.parametrize(("renormalize", "scale"), [(True, 1.0), (True, 2.5), (False, 1.0)])
def test_weights_and_choice_equal_transformers(renormalize, scale):
    from transformers import Mistral4Config
    from transformers.models.mistral4.modeling_mistral4 import Mistral4TopkRouter

    config = Mistral4Config(
        hidden_size=16, n_routed_experts=32, num_experts_per_tok=4, norm_topk_prob=renormalize, routed_scaling_factor=scale
    )
    oracle = Mistral4TopkRouter(config)
    torch.nn.init.normal_(oracle.weight)
    logits_te, expected_weights_tk, expected_ids_tk = oracle(torch.randn(200, 16))

    weights_tk, ids_tk = route_reference(logits_te, 4, renormalize, scale)

    order = expected_weights_tk.argsort(dim=-1, descending=True)  # transformers leaves the order open
    assert torch.equal(ids_tk, expected_ids_tk.gather(1, order))
    torch.testing.assert_close(weights_tk, expected_weights_tk.gather(1, order), rtol=1e-6, atol=0)  # fp32 rounding of one division


@pytest.mark.parametrize("renormalize", [True, False])
def test_gradient_by_finite_differences(renormalize):
    logits_te = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: route_reference(x, 3, renormalize, 1.5)[0], (logits_te,))
