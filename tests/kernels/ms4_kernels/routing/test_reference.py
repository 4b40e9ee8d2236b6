"""The router against transformers' router, and what transformers leaves open: ties and half precision."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.routing import route, top_k_lower_id


@pytest.mark.parametrize(("renormalize", "scale"), [(True, 1.0), (True, 2.5), (False, 1.0)])
def test_weights_and_choice_equal_transformers(renormalize, scale):
    from transformers import Mistral4Config
    from transformers.models.mistral4.modeling_mistral4 import Mistral4TopkRouter

    config = Mistral4Config(
        hidden_size=16, n_routed_experts=32, num_experts_per_tok=4, norm_topk_prob=renormalize, routed_scaling_factor=scale
    )
    oracle = Mistral4TopkRouter(config)
    torch.nn.init.normal_(oracle.weight)
    hidden_td = torch.randn(200, 16)
    logits_te, expected_weights_tk, expected_ids_tk = oracle(hidden_td)

    weights_tk, ids_tk = route(logits_te, 4, renormalize, scale)

    order = expected_weights_tk.argsort(dim=-1, descending=True)  # transformers leaves the order open
    assert torch.equal(ids_tk, expected_ids_tk.gather(1, order))
    torch.testing.assert_close(weights_tk, expected_weights_tk.gather(1, order), rtol=1e-6, atol=0)  # fp32 rounding of one division


def test_ties_go_to_the_lower_id():
    logits_te = torch.tensor([[1.0, 3.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert route(logits_te, 3)[1].tolist() == [[1, 2, 4], [0, 1, 2]]


def test_choice_equals_a_stable_sort_on_scores_full_of_ties():
    scores_te = torch.randint(0, 6, (500, 24)).float() / 6
    expected = scores_te.sort(dim=-1, descending=True, stable=True).indices[:, :5]
    assert torch.equal(top_k_lower_id(scores_te, 5), expected)


def test_half_precision_logits_are_widened_first():
    logits_te = torch.randn(50, 16).to(torch.bfloat16)
    weights_tk, ids_tk = route(logits_te, 4)
    expected_weights_tk, expected_ids_tk = route(logits_te.float(), 4)
    assert weights_tk.dtype == torch.float32
    assert torch.equal(weights_tk, expected_weights_tk)
    assert torch.equal(ids_tk, expected_ids_tk)


def test_underflowed_probabilities_still_give_finite_weights():
    weights_tk, ids_tk = route(torch.tensor([[500.0, 0.0, 0.0]]), 2)
    assert ids_tk.tolist() == [[0, 1]]
    assert weights_tk.tolist() == [[1.0, 0.0]]


def test_gradient_by_finite_differences():
    logits_te = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: route(x, 3, True, 1.5)[0], (logits_te,))


@pytest.mark.parametrize("top_k", [0, 9])
def test_top_k_out_of_range_is_refused(top_k):
    with pytest.raises(ValueError, match=r"1\.\.8"):
        route(torch.zeros(2, 8), top_k)
