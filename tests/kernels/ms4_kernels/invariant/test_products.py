"""Products beside torch's in fp64; a row alone and among others to the bit; the control that torch's own differ."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ms4_kernels.invariant import batch_invariant, products

K = 133
WEIGHT = torch.randn(77, K, generator=torch.Generator().manual_seed(3)) / K**0.5
FORMS = {
    "linear": lambda x, w: F.linear(x, w),
    "bias": lambda x, w: F.linear(x, w, w[:, 0]),
    "by columns": lambda x, w: x @ w.t().contiguous(),
    "slice": lambda x, w: x[:, 3:40] @ w[:, 3:40].t(),
    "strided columns": lambda x, w: x @ w.t()[:, 5:60],
    "batch": lambda x, w: torch.bmm(x.expand(3, -1, -1), w.t().expand(3, -1, -1)).transpose(0, 1),
    "three axes": lambda x, w: (x[None] @ w.t())[0],
    "einsum": lambda x, w: torch.einsum("tk,nk->tn", x, w),
    "scaled": lambda x, w: torch.addmm(torch.ones(77, dtype=x.dtype), x, w.t(), beta=0.5, alpha=2.0),
    "vector": lambda x, w: (x @ w[0])[:, None],
}
SIZES = [(1, 0), (2, 1), (7, 3), (64, 63), (65, 5), (129, 128)]


def changes(form, dtype) -> int:
    """How often the result of one row differs from that of the row alone."""
    weight, row = WEIGHT.to(dtype), torch.randn(1, K).to(dtype)
    alone, count = FORMS[form](row, weight)[0], 0
    for rows, place in SIZES:
        x = torch.randn(rows, K).to(dtype)
        x[place] = row
        count += not torch.equal(FORMS[form](x, weight)[place], alone)
    return count


@pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_does_not_depend_on_others(form, dtype, inference):
    with torch.inference_mode(inference), batch_invariant():
        assert changes(form, dtype) == 0


def test_without_compiled_kernels_too(monkeypatch):
    monkeypatch.setattr(products, "library", lambda: None)
    with batch_invariant():
        assert changes("linear", torch.float32) == 0


def test_control_torchs_own_rows_do():
    assert changes("linear", torch.float32)
    with batch_invariant():
        pass
    assert changes("by columns", torch.float32)  # and do again after the mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_error_at_most_twice_that_of_torch(form, dtype):
    x, weight = torch.randn(20, K).to(dtype), WEIGHT.to(dtype)
    with batch_invariant():
        found = FORMS[form](x, weight)
    plain, exact = FORMS[form](x, weight), FORMS[form](x.double(), weight.double())
    assert (found.dtype, found.shape) == (plain.dtype, plain.shape)
    # Sums in the order of their terms lose more than torch's blocked ones: by at most the square root of the 133 terms.
    allowed = 2 * (plain.double() - exact).norm() + 4 * torch.finfo(dtype).eps * exact.norm()
    assert (found.double() - exact).norm() <= allowed


def test_outputs_that_are_given_or_changed():
    x, weight = torch.randn(4, K), WEIGHT
    out, total = torch.empty(4, 77), torch.ones(4, 77)
    with batch_invariant():
        found = torch.mm(x, weight.t(), out=out)
        total.addmm_(x, weight.t(), beta=0)
        batch = torch.full((1, 4, 77), torch.nan).baddbmm_(x[None], weight.t()[None], beta=0)
    assert found is out
    torch.testing.assert_close(out, x @ weight.t())
    assert torch.equal(total, out)
    assert torch.equal(batch[0], out)


def test_nothing():
    with batch_invariant():
        assert (torch.empty(0, K) @ WEIGHT.t()).shape == (0, 77)
        assert (torch.empty(0, K, dtype=torch.float64) @ WEIGHT.t().double()).shape == (0, 77)
        assert not (torch.empty(3, 0) @ torch.empty(0, 5)).any()
        assert torch.bmm(torch.empty(0, 2, K), torch.empty(0, K, 3)).shape == (0, 2, 3)
