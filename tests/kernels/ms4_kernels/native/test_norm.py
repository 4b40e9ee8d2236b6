"""The compiled sum of squares against fp64, whatever the length, and the same bits on any number of threads."""

import pytest
import torch

from ms4_kernels.native import norm
from ms4_kernels.native.norm import sum_of_squares


@pytest.mark.parametrize("count", [1, 17, 1000, 16384, 16385, 100_003])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_equals_fp64(monkeypatch, count, scale):
    """fp32 sums of at most 2,048 terms each, then fp64: a few units of 2^-24."""
    monkeypatch.setattr(norm, "_LEAST", 1)
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)) * scale
    torch.testing.assert_close(sum_of_squares(x), x.double().square().sum(), rtol=1e-6, atol=0)


def test_same_bits_on_any_number_of_threads():
    x = torch.randn(1_000_003, generator=torch.Generator().manual_seed(1))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(sum_of_squares(x).item())
    finally:
        torch.set_num_threads(before)
    assert len(set(results)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value):
    x = torch.zeros(50_000)
    x[40_001] = value
    assert not sum_of_squares(x).isfinite()


def test_others_go_to_torch():
    x = torch.randn(200, 200, dtype=torch.bfloat16)
    torch.testing.assert_close(sum_of_squares(x), torch.linalg.vector_norm(x).double() ** 2)
    transposed = torch.randn(300, 200).t()
    torch.testing.assert_close(sum_of_squares(transposed), transposed.double().square().sum(), rtol=1e-5, atol=0)
