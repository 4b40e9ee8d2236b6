"""What every router promises, reference, CPU path and interpreted Triton alike: transformers' weights, ties, half precision, NaN."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from support.triton_interpreter import interpreted

from ms4_kernels import dispatch
from ms4_kernels.routing import route

BACKENDS = ["reference", "cpu", "triton"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with interpreted() if request.param == "triton" else nullcontext():
        yield request.param


@pytest.mark.parametrize(("renormalize", "scale"), [(True, 1.0), (True, 2.5), (False, 1.0), (False, 2.5)])
def test_weights_and_choice_equal_transformers(backend, renormalize, scale):
    from transformers import Mistral4Config
    from transformers.models.mistral4.modeling_mistral4 import Mistral4TopkRouter

    config = Mistral4Config(
        hidden_size=16, n_routed_experts=32, num_experts_per_tok=4, norm_topk_prob=renormalize, routed_scaling_factor=scale
    )
    oracle = Mistral4TopkRouter(config)
    torch.nn.init.normal_(oracle.weight)
    logits_te, expected_weights_tk, expected_ids_tk = oracle(torch.randn(200, 16))

    weights_tk, ids_tk = route(logits_te, 4, renormalize, scale, backend=backend)

    order = expected_weights_tk.argsort(dim=-1, descending=True)  # transformers leaves the order open
    assert ids_tk.dtype == torch.int64
    assert torch.equal(ids_tk, expected_ids_tk.gather(1, order))
    # Two exponentials, a sum of 32 and a division, in fp32, on both sides.
    torch.testing.assert_close(weights_tk, expected_weights_tk.gather(1, order), rtol=1e-6, atol=0)


def test_ties_go_to_the_lower_id(backend):
    logits_te = torch.tensor([[1.0, 3.0, 3.0, 1.0, 3.0], [0.0, -0.0, 0.0, -0.0, 0.0], [-0.0, 0.0, 1.0, -1.0, 1.0]])
    assert route(logits_te, 3, backend=backend)[1].tolist() == [[1, 2, 4], [0, 1, 2], [2, 4, 0]]


def test_choice_equals_a_stable_sort_on_logits_full_of_ties(backend):
    logits_te = torch.randint(-3, 3, (300, 24)).float()
    expected_tk = logits_te.sort(dim=-1, descending=True, stable=True).indices[:, :5]
    assert torch.equal(route(logits_te, 5, backend=backend)[1], expected_tk)


def test_logits_that_softmax_rounds_together_are_told_apart(backend):
    """Both have probability 0.5 in fp32, and another device might round them apart."""
    logits_te = torch.tensor([[2.0**-30, 2.0**-29]])
    assert route(logits_te, 1, backend=backend)[1].item() == 1
    assert torch.equal(logits_te.softmax(-1)[0, 0], logits_te.softmax(-1)[0, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_widened_first(backend, dtype):
    logits_te = torch.randn(50, 16).to(dtype)
    weights_tk, ids_tk = route(logits_te, 4, backend=backend)
    expected_weights_tk, expected_ids_tk = route(logits_te.float(), 4, backend=backend)
    assert weights_tk.dtype == torch.float32
    assert torch.equal(weights_tk, expected_weights_tk)
    assert torch.equal(ids_tk, expected_ids_tk)


@pytest.mark.parametrize("renormalize", [True, False])
def test_underflowed_probabilities_still_give_finite_weights_and_gradients(backend, renormalize):
    logits_te = torch.tensor([[500.0, 0.0, 0.0], [0.0, -torch.inf, -torch.inf]], requires_grad=True)
    weights_tk, ids_tk = route(logits_te, 2, renormalize, backend=backend)
    weights_tk.sum().backward()
    assert ids_tk.tolist() == [[0, 1], [0, 1]]
    assert weights_tk.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert logits_te.grad is not None
    assert logits_te.grad.abs().max() == 0.0


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("row", [[torch.nan] * 6, [0, torch.nan, 1, 2, torch.nan, 3], [0, torch.inf, 1, torch.inf, 2, 3], [-torch.inf] * 6])
def test_nan_and_infinity_give_nan_weights_and_distinct_ids_in_range(backend, renormalize, row):
    logits_te = torch.randn(3, 6)
    logits_te[1] = torch.tensor(row)
    weights_tk, ids_tk = route(logits_te, 4, renormalize, backend=backend)
    assert weights_tk[1].isnan().all()
    assert len(set(ids_tk[1].tolist())) == 4
    assert 0 <= ids_tk[1].min() <= ids_tk[1].max() < 6
    neighbours_tk, neighbour_ids_tk = route(logits_te[[0, 2]], 4, renormalize, backend=backend)
    assert torch.equal(weights_tk[[0, 2]], neighbours_tk)
    assert torch.equal(ids_tk[[0, 2]], neighbour_ids_tk)


def test_a_scale_of_zero_gives_zeros(backend):
    logits_te = torch.randn(3, 6, requires_grad=True)
    weights_tk, _ = route(logits_te, 2, True, 0.0, backend=backend)
    (grad_te,) = torch.autograd.grad(weights_tk.sum(), logits_te)
    assert weights_tk.abs().max() == 0
    assert grad_te.abs().max() == 0


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_token_and_one(backend, tokens):
    logits_te = torch.randn(tokens, 6, requires_grad=True)
    weights_tk, ids_tk = route(logits_te, 2, backend=backend)
    weights_tk.sum().backward()
    assert weights_tk.shape == ids_tk.shape == (tokens, 2)
    assert logits_te.grad is not None
    assert logits_te.grad.shape == (tokens, 6)


@pytest.mark.parametrize("top_k", [0, 9])
def test_top_k_out_of_range_is_refused(backend, top_k):
    with pytest.raises(ValueError, match=r"1\.\.8"):
        route(torch.zeros(2, 8), top_k, backend=backend)


def test_logits_that_are_no_matrix_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 3, 8\], expected \[T, E\]"):
        route(torch.zeros(2, 3, 8), 2)


def test_fp64_never_goes_to_a_kernel():
    with interpreted() as launches:
        weights_tk, _ = route(torch.randn(5, 8, dtype=torch.float64), 2)
        with pytest.raises(ValueError, match="no Triton kernel"):
            route(torch.randn(5, 8, dtype=torch.float64), 2, backend="triton")
    assert weights_tk.dtype == torch.float64
    assert not launches


def test_auto_takes_the_kernel_where_triton_runs():
    with interpreted() as launches:
        route(torch.randn(5, 8), 2)
    assert [launch.kernel for launch in launches] == ["choose_kernel"]
    assert dispatch.choose("routing", "auto", torch.zeros(1)) == "cpu"
