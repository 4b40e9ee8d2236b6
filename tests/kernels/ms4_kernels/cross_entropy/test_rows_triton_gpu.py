"""Head and loss on a CUDA device: loss and gradients against fp64 there, bit-identical runs, and never all logits in memory."""

from __future__ import annotations

import pytest
import torch
from support import gpu
from support.gpu import differing, moved, needs_gpu, worse_than_torch
from support.loss_inputs import exact_results, loss_and_gradients, loss_inputs, plain_loss

from ms4_kernels.cross_entropy import linear_cross_entropy

pytestmark = needs_gpu
NAMES = ("loss", "dhidden", "dhead")


def named(results) -> dict[str, torch.Tensor]:
    return dict(zip(NAMES, results, strict=True))


def ours(hidden_td, head_vd, target_t):
    return named(loss_and_gradients(lambda *args: linear_cross_entropy(*args, chunk_tokens=128), hidden_td, head_vd, target_t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("vocabulary", "masked"), [(1000, 0.4), (5003, 0.0), (131072, 0.9)])
def test_error_at_most_twice_that_of_torch(dtype, vocabulary, masked):
    inputs = tuple(moved(x) for x in loss_inputs(dtype, tokens=300, hidden=256, vocabulary=vocabulary, masked=masked))
    plain, exact = named(loss_and_gradients(plain_loss, *inputs)), named(exact_results(*inputs))
    # In bf16 both sides sum losses of rounded logits: the scalar is fp32, its error that of the logits' type.
    assert worse_than_torch(ours(*inputs), plain, exact, dtype) == []


def test_two_runs_agree_to_the_bit():
    inputs = tuple(moved(x) for x in loss_inputs(torch.bfloat16, tokens=700, hidden=256, vocabulary=4096))
    assert differing(ours(*inputs), ours(*inputs)) == []


def test_memory_stays_far_below_all_logits():
    tokens, vocabulary = 8192, 32768
    inputs = tuple(moved(x) for x in loss_inputs(torch.bfloat16, tokens=tokens, hidden=64, vocabulary=vocabulary, masked=0.0))
    ours(*inputs)  # compiled, and cuBLAS has its workspace
    all_logits = 2 * tokens * vocabulary
    assert gpu.peak_bytes(lambda: ours(*inputs)) < all_logits / 4
    assert gpu.peak_bytes(lambda: loss_and_gradients(plain_loss, *inputs)) > all_logits
