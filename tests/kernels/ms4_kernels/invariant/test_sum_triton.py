"""Sums of rows in the interpreter: near fp64, alone and among others to the bit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from support.mutations import plant
from support.triton_interpreter import OutOfBoundsError, interpreted

from ms4_kernels.invariant import batch_invariant, sum_triton


def summed(x):
    with interpreted() as launches:
        found = sum_triton.sum_triton(x)
    assert len(launches) == 1
    return found


@pytest.mark.parametrize("shape", [(7,), (3, 1), (5, 37), (2, 3, 1024), (4, 2500)])
def test_near_fp64(shape):
    x = torch.randn(shape)
    # At most three additions in a lane and ten in the tree, of numbers below 100.
    torch.testing.assert_close(summed(x).double(), x.double().sum(-1), rtol=0, atol=13 * 100 * 2**-24)


def test_a_row_does_not_depend_on_others_nor_on_strides():
    x = torch.randn(9, 1300)
    together = summed(x)
    assert torch.equal(summed(x[4:5]), together[4:5])
    assert torch.equal(summed(x.t().contiguous().t()), together)


def test_the_mode_takes_it_where_triton_runs():
    x = torch.randn(4, 50)
    with interpreted() as launches, batch_invariant():
        found = x.mean(-1), x.softmax(-1)
    assert {launch.kernel for launch in launches} == {"sum_kernel"}
    torch.testing.assert_close(found, (x.mean(-1), x.softmax(-1)))


def test_planted_bugs_are_caught(monkeypatch, tmp_path):
    x = torch.randn(4, 2500)
    with monkeypatch.context() as inside:
        plant(inside, tmp_path, sum_triton, "sum_l += tl.load", "sum_l = tl.load")
        assert not torch.allclose(summed(x), x.sum(-1), atol=1e-3)
    plant(monkeypatch, tmp_path, sum_triton, ", mask=first + lane_l < length, other=0.0", "")
    with pytest.raises(OutOfBoundsError):
        summed(x)
