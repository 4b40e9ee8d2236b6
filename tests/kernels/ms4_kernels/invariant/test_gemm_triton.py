"""The product with one tile in the interpreter: errors beside torch's, rows to the bit, planted bugs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from support.mutations import plant
from support.triton_interpreter import OutOfBoundsError, RaceError, interpreted

from ms4_kernels.invariant import batch_invariant, gemm_triton


def multiply(a, b):
    with interpreted() as launches:
        found = gemm_triton.multiply_triton(a, b)
    assert [launch.kernel for launch in launches] == ["gemm_kernel"]
    return found


def holds(a, b) -> bool:
    exact, plain = torch.bmm(a.double(), b.double()), torch.bmm(a, b)
    error, allowed = ((x.double() - exact).norm() for x in (multiply(a, b), plain))
    # Sums in the order of their terms against torch's blocked ones, and a rounding where torch is exact.
    return bool(error <= 2 * allowed + 2 * torch.finfo(a.dtype).eps * exact.norm())


def inputs(dtype, matrices=2, rows=70, inner=90, columns=150):
    a = torch.randn(rows, matrices, inner).to(dtype).transpose(0, 1)  # rows that lie apart
    return a, (torch.randn(matrices, columns, inner) / inner**0.5).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("inner", [64, 90])
def test_error_at_most_twice_that_of_torch(dtype, by_columns, inner):
    a, b = inputs(dtype, inner=inner)
    assert holds(a, b.contiguous() if by_columns else b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_others(dtype):
    a, b = inputs(dtype, matrices=1)
    together = multiply(a, b)
    for rows in (slice(0, 1), slice(69, 70), slice(3, 40)):
        assert torch.equal(multiply(a[:, rows], b), together[:, rows])


def test_nothing_is_not_launched():
    assert gemm_triton.multiply_triton(torch.empty(2, 0, 5), torch.empty(2, 5, 3)).shape == (2, 0, 3)


def test_the_mode_takes_it_where_triton_runs():
    x, weight = torch.randn(5, 40), torch.randn(30, 40)
    with interpreted() as launches, batch_invariant():
        found = torch.nn.functional.linear(x, weight)
    assert [launch.kernel for launch in launches] == ["gemm_kernel"]
    torch.testing.assert_close(found, x @ weight.t(), rtol=1e-5, atol=1e-5)


PLANTED = {
    "columns past the end are stored": (
        "(row_m < M)[:, None] & (col_n < N)[None, :]",
        "(row_m < M)[:, None]",
        (OutOfBoundsError, RaceError),
    ),
    "rows past the end are stored": ("(row_m < M)[:, None] & (col_n < N)[None, :]", "(col_n < N)[None, :]", (OutOfBoundsError, RaceError)),
    "rows past the end are read": ("tl.minimum(row_m, M - 1)", "row_m", OutOfBoundsError),
    "terms past the end are read": ("mask=(place_k < K)[:, None], other=0.0", "", OutOfBoundsError),
    "one matrix for all": ("matrix * b_stride_z", "0 * b_stride_z", None),
    "every block begins anew": ("tl.dot(a_mk, b_kn, acc_mn,", "tl.dot(a_mk, b_kn, acc_mn * 0,", None),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(monkeypatch, tmp_path, bug):
    old, new, raised = PLANTED[bug]
    a, b = inputs(torch.float32)
    plant(monkeypatch, tmp_path, gemm_triton, old, new)
    if raised is not None:
        with pytest.raises(raised):
            multiply(a, b)
        return
    assert not holds(a, b)
