"""The cross-entropy of a head on a CUDA device at the release's vocabulary, through Triton. ``make test-gpu`` runs it."""

from __future__ import annotations

import pytest
import torch
from support.loss_inputs import exact_results, loss_and_gradients, loss_inputs, plain_loss

from ms4_kernels.cross_entropy import linear_cross_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_error_is_at_most_twice_that_of_torch(dtype):
    hidden_td, head_vd, target_t = loss_inputs(dtype, tokens=150, hidden=64, vocabulary=131072)
    moved = [x.detach().cuda().requires_grad_() for x in (hidden_td, head_vd)]
    got, again = (
        loss_and_gradients(lambda *args: linear_cross_entropy(*args, chunk_tokens=64, backend="triton"), *moved, target_t.cuda())
        for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(got, again, strict=True))
    plain = loss_and_gradients(plain_loss, *moved, target_t.cuda())
    for mine, other, truth in zip(got, plain, exact_results(hidden_td, head_vd, target_t), strict=True):
        # Twice torch's error; one rounding of the largest value for where torch happens to be exact.
        bound = 2 * (other.double().cpu() - truth).abs().max() + torch.finfo(torch.float32).eps * truth.abs().max()
        assert (mine.double().cpu() - truth).abs().max() <= bound
