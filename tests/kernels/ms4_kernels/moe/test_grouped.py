"""The three grouped products against dense products in fp64, and against torch's own grouped product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ms4_kernels.moe.grouped import rows_by_rows, rows_by_weight, rows_by_weight_transposed

COUNTS = [3, 0, 7, 1, 0, 12, 0]  # empty groups first, last and between
# One rounding of a sum of at most 16 products of normals; bf16 is accumulated in fp32 and rounded once.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_products_equal_dense_ones(dtype):
    ends_e = torch.tensor(COUNTS).cumsum(0).to(torch.int32)
    weight_eoi = torch.randn(len(COUNTS), 5, 16).to(dtype)
    rows_ri, rows_ro = torch.randn(sum(COUNTS), 16).to(dtype), torch.randn(sum(COUNTS), 5).to(dtype)
    expert_r = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    member_er = F.one_hot(expert_r, len(COUNTS)).t().double()

    expected = torch.einsum("ri,roi->ro", rows_ri.double(), weight_eoi.double()[expert_r])
    torch.testing.assert_close(rows_by_weight(rows_ri, weight_eoi, ends_e).double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    expected = torch.einsum("ro,roi->ri", rows_ro.double(), weight_eoi.double()[expert_r])
    actual = rows_by_weight_transposed(rows_ro, weight_eoi, ends_e)
    torch.testing.assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    expected = torch.einsum("er,ro,ri->eoi", member_er, rows_ro.double(), rows_ri.double())
    actual = rows_by_rows(rows_ro, rows_ri, ends_e)
    torch.testing.assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert actual.dtype == dtype
    assert not actual[[1, 4, 6]].any()


def test_fp32_equals_torch_grouped_mm():
    ends_e = torch.tensor(COUNTS).cumsum(0).to(torch.int32)
    rows_ri, weight_eoi = torch.randn(sum(COUNTS), 16), torch.randn(len(COUNTS), 8, 16)
    expected = F.grouped_mm(rows_ri, weight_eoi.transpose(1, 2), offs=ends_e)
    torch.testing.assert_close(rows_by_weight(rows_ri, weight_eoi, ends_e), expected, rtol=1e-6, atol=1e-6)
