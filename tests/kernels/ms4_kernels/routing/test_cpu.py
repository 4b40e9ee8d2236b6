"""The CPU router: its choice against a stable sort, its gradient against autograd through the plain formula, what it keeps."""

from __future__ import annotations

import pytest
import torch

from ms4_kernels.routing import top_k_lower_id
from ms4_kernels.routing.cpu import route_cpu
from ms4_kernels.routing.reference import route_reference


def test_choice_equals_a_stable_sort_on_scores_full_of_ties():
    scores_te = torch.randint(0, 6, (500, 24)).float() / 6
    expected = scores_te.sort(dim=-1, descending=True, stable=True).indices[:, :5]
    assert torch.equal(top_k_lower_id(scores_te, 5), expected)


def test_torch_topk_would_not_do():
    """The negative control of the test before: on the same scores, torch's own choice differs."""
    scores_te = torch.randint(0, 6, (500, 24)).float() / 6
    assert not torch.equal(scores_te.topk(5, dim=-1).indices, top_k_lower_id(scores_te, 5))


@pytest.mark.parametrize("row", [[torch.nan] * 4, [-torch.inf] * 4, [torch.inf, -torch.inf, torch.nan, torch.inf]])
def test_ids_are_distinct_whatever_the_scores(row):
    assert sorted(top_k_lower_id(torch.tensor([row]), 4)[0].tolist()) == [0, 1, 2, 3]


def test_scores_are_left_alone_and_may_be_strided():
    scores_te = torch.randn(8, 50).t()
    before_te = scores_te.clone()
    ids_tk = top_k_lower_id(scores_te, 3)
    assert torch.equal(scores_te, before_te)
    assert torch.equal(ids_tk, top_k_lower_id(before_te, 3))


@pytest.mark.parametrize("top_k", [0, 9])
def test_top_k_out_of_range_is_refused(top_k):
    with pytest.raises(ValueError, match=r"1\.\.8"):
        top_k_lower_id(torch.zeros(2, 8), top_k)


@pytest.mark.parametrize(("renormalize", "scale"), [(True, 1.0), (True, 2.5), (False, 1.0), (False, 2.5)])
@pytest.mark.parametrize(("experts", "top_k"), [(128, 4), (24, 3), (5, 5), (7, 1)])
def test_weights_and_gradient_equal_autograd_in_fp64(renormalize, scale, experts, top_k):
    logits_te = torch.randn(60, experts, dtype=torch.float64, requires_grad=True)
    dweights_tk = torch.randn(60, top_k, dtype=torch.float64)
    results = []
    for router in (route_reference, route_cpu):
        weights_tk, ids_tk = router(logits_te, top_k, renormalize, scale)
        results.append((weights_tk.detach(), ids_tk, *torch.autograd.grad(weights_tk, logits_te, dweights_tk)))
    # 2^-53 times the few operations of each entry; the gradient of one chosen expert alone is a difference of equals.
    torch.testing.assert_close(results[1], results[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("renormalize", [True, False])
def test_gradient_by_finite_differences(renormalize):
    logits_te = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: route_cpu(x, 3, renormalize, 1.5)[0], (logits_te,))


def test_only_weights_and_ids_are_kept():
    logits_te = torch.randn(50, 128, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        weights_tk, _ = route_cpu(logits_te, 4)
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == 50 * 4 * (4 + 8)
    weights_tk.sum().backward()
