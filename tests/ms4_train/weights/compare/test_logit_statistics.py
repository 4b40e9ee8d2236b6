"""Sums over chunks of the vocabulary against torch's own functions on whole logits."""

import math

import pytest
import torch
import torch.nn.functional as F

from ms4_train.weights.compare.logit_statistics import LogitStatistics


def summed(a, b, step):
    statistics = LogitStatistics(len(a))
    for start in range(0, a.shape[1], step):
        statistics.add(start, a[:, start : start + step], b[:, start : start + step])
    return statistics


@pytest.mark.parametrize("step", [1, 7, 50])
@pytest.mark.parametrize("size", [1.0, 3000.0])  # the second overflows exp without the shift
def test_against_torch(step, size):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(9, 50, generator=generator, dtype=torch.float64) * size
    b = a + torch.randn(9, 50, generator=generator, dtype=torch.float64) * 0.3 * size
    found = summed(a, b, step)
    expected = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    # fp64, and terms as large as the logits cancel.
    assert torch.allclose(found.kl_t, expected.clamp(min=0), rtol=1e-9, atol=1e-11 * size)
    assert found.same_first_choice == pytest.approx(float((a.argmax(-1) == b.argmax(-1)).double().mean()))
    assert found.max_relative_error == pytest.approx(float((a - b).abs().max() / a.abs().max()))
    same = summed(a, a, step)
    assert same.max_relative_error == 0
    assert float(same.kl_t.max()) <= 1e-11 * size
    assert same.same_first_choice == 1


def test_the_first_of_equal_logits_is_the_choice():
    a = torch.zeros(1, 6)
    b = torch.tensor([[0.0, 0, 0, 0, 0, 1e-6]])
    assert summed(a, a, 2).same_first_choice == 1
    assert summed(a, b, 2).same_first_choice == 0


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_never_equal(wrong):
    a = torch.zeros(2, 6)
    b = a.clone()
    b[1, 4] = wrong
    found = summed(a, b, 3)
    assert not found.is_finite
    assert found.max_relative_error == math.inf
    assert found.same_first_choice == 0
    assert bool(found.kl_t.isnan().all())
