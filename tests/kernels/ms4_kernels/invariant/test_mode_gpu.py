"""The mode on a CUDA device: rows of products, sums and softmax to the bit, errors beside torch's, and the control of cuBLAS."""

from __future__ import annotations

import pytest
import torch
from support.gpu import DEVICE, needs_gpu
from torch.nn import functional as F

from ms4_kernels.invariant import batch_invariant

pytestmark = needs_gpu
WEIGHT = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(1)) / 64
FORMS = {
    "linear": lambda x, w: F.linear(x, w),
    "by columns": lambda x, w: x @ w.t().contiguous(),
    "batch": lambda x, w: torch.bmm(x.expand(2, -1, -1), w.t().expand(2, -1, -1)).transpose(0, 1),
    "gated": lambda x, w: F.silu(F.linear(x, w)),
    "softmax": lambda x, w: x.softmax(-1),
    "log softmax": lambda x, w: x.log_softmax(-1),
    "mean of squares": lambda x, w: x.float().square().mean(-1, keepdim=True),
}


def changes(form, dtype) -> int:
    x, weight = torch.randn(513, 4096, device=DEVICE).to(dtype), WEIGHT.to(DEVICE, dtype)
    together = FORMS[form](x, weight)
    return sum(not torch.equal(FORMS[form](x[rows], weight), together[rows]) for rows in (slice(0, 1), slice(512, 513), slice(3, 70)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_does_not_depend_on_others(form, dtype):
    with torch.inference_mode(), batch_invariant():
        assert changes(form, dtype) == 0


def test_control_cublas_rows_do():
    assert any(changes(form, torch.bfloat16) for form in ("linear", "by columns", "batch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_error_at_most_twice_that_of_torch(form, dtype):
    x, weight = torch.randn(70, 4096, device=DEVICE).to(dtype), WEIGHT.to(DEVICE, dtype)
    with batch_invariant():
        found = FORMS[form](x, weight)
    plain, exact = FORMS[form](x, weight), FORMS[form](x.double(), weight.double()).double()
    # Sums in the order of their terms lose more in fp32 than blocked ones: at most the square root of 4096 terms, 64 roundings.
    allowed = 2 * (plain.double() - exact).norm() + 64 * torch.finfo(torch.float32).eps * exact.norm()
    assert (found.double() - exact).norm() <= allowed
