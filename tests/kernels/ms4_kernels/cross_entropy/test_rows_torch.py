"""A chunk's loss and gradient by torch's softmax, where probabilities are ordinary, tiny and zero."""

from __future__ import annotations

import math

import pytest
import torch
from support.loss_inputs import rows_inputs, rows_results

from ms4_kernels.cross_entropy import rows_torch as module
from ms4_kernels.cross_entropy.rows_torch import chunk_tokens_torch, rows_torch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("spread", [1.0, 30.0, 300.0])
def test_equals_torch(dtype, spread):
    logits_cv, target_c, exact_loss, exact_grad_cv = rows_inputs(dtype, tokens=40, vocabulary=300, spread=spread)
    loss, grad_cv = rows_torch(logits_cv.clone(), target_c, True)
    only_loss, nothing = rows_torch(logits_cv.clone(), target_c, False)
    plain_loss, plain_grad_cv = rows_results(logits_cv, target_c)
    assert nothing is None
    assert grad_cv.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    # Twice torch's own error, and the rounding of the sum, for where torch happens to be exact.
    for mine in (loss, only_loss):
        assert (mine.double() - exact_loss).abs() <= 2 * (plain_loss.double() - exact_loss).abs() + torch.finfo(wide).eps * exact_loss
    bound = 2 * (plain_grad_cv.double() - exact_grad_cv).abs().max() + torch.finfo(wide).eps
    assert (grad_cv.double() - exact_grad_cv).abs().max() <= bound


@pytest.mark.parametrize("depth", [60.0, 69.0, 70.0, 90.0, 104.0, 1000.0])
def test_targets_of_no_probability_keep_their_loss(depth):
    """In fp32, exp(-104) is zero."""
    logits_cv = torch.zeros(2, 4)
    logits_cv[:, 0] = -depth
    loss, _ = rows_torch(logits_cv, torch.tensor([0, 1]), True)
    torch.testing.assert_close(float(loss), depth + 2 * math.log(3), rtol=1e-6, atol=0)


def test_control_without_the_second_look_such_a_loss_is_infinite(monkeypatch):
    monkeypatch.setattr(module, "_TINY", 0.0)
    with pytest.raises(AssertionError):
        test_targets_of_no_probability_keep_their_loss(1000.0)


def test_what_is_not_a_number_shows():
    logits_cv = torch.zeros(2, 4)
    logits_cv[1, 2] = math.nan
    assert math.isnan(rows_torch(logits_cv, torch.tensor([0, 1]), True)[0])


@pytest.mark.parametrize(("vocabulary", "most", "expected"), [(8192, 1024, 256), (131072, 1024, 128), (131072, 16, 16), (31, 50, 50)])
def test_chunks_fit_the_cache_and_what_was_asked_for(vocabulary, most, expected):
    assert chunk_tokens_torch(vocabulary, most) == expected
