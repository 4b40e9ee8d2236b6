"""The router's kernels on a CUDA device: choice and weights against fp64 there, bit-identical runs, no waiting of the host."""

from __future__ import annotations

import pytest
import torch
from support import gpu
from support.gpu import differing, needs_gpu, no_host_wait, worse_than_torch

from ms4_kernels.routing import route
from ms4_kernels.routing.reference import route_reference

pytestmark = needs_gpu
SHAPES = [(20000, 128, 4), (33, 24, 3), (17, 5, 5), (50, 7, 1), (1, 1, 1)]
"""(tokens, experts, top_k)."""


def results(router, logits_te, dweights_tk, renormalize=True, scale=1.0):
    logits_te = logits_te.detach().requires_grad_()
    weights_tk, ids_tk = router(logits_te, dweights_tk.shape[1], renormalize, scale)
    (dlogits_te,) = torch.autograd.grad(weights_tk, logits_te, dweights_tk)
    return {"weights": weights_tk.detach(), "dlogits": dlogits_te}, ids_tk


def inputs(tokens, experts, top_k, dtype=torch.float32):
    logits_te = (3 * torch.randn(tokens, experts)).to(dtype)
    return logits_te.to(gpu.DEVICE), torch.randn(tokens, top_k).to(gpu.DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("renormalize", "scale"), [(True, 1.0), (False, 2.5)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_that_of_torch(shape, renormalize, scale, dtype):
    logits_te, dweights_tk = inputs(*shape, dtype)
    mine, ids_tk = results(route, logits_te, dweights_tk, renormalize, scale)
    plain, _ = results(route_reference, logits_te, dweights_tk, renormalize, scale)
    exact, exact_ids_tk = results(route_reference, logits_te.double(), dweights_tk.double(), renormalize, scale)
    assert torch.equal(ids_tk, exact_ids_tk)
    assert worse_than_torch({"weights": mine["weights"]}, {"weights": plain["weights"]}, {"weights": exact["weights"]}, torch.float32) == []
    # The largest of a whole tensor: a gradient that is zero but for roundings has no precision of its own.
    error, bound = ((x["dlogits"].double() - exact["dlogits"]).norm() for x in (mine, plain))
    assert error <= 2 * bound + torch.finfo(dtype).eps / 2 * exact["dlogits"].abs().max()


def test_ties_go_to_the_lower_id():
    logits_te = torch.randint(-3, 3, (3000, 24)).float()
    expected_tk = logits_te.sort(dim=-1, descending=True, stable=True).indices[:, :5]
    assert torch.equal(route(logits_te.to(gpu.DEVICE), 5)[1].cpu(), expected_tk)


def test_two_runs_agree_to_the_bit_and_the_host_never_waits():
    logits_te, dweights_tk = inputs(5000, 128, 4)
    (first, ids_tk), _ = results(route, logits_te, dweights_tk), results(route, logits_te, dweights_tk)
    with no_host_wait():
        second, again_tk = results(route, logits_te, dweights_tk)
    assert differing(first | {"ids": ids_tk}, second | {"ids": again_tk}) == []
