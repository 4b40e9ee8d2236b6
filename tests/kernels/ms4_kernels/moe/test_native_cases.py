"""The compiled CPU kernels on every case of ``support/experts_cases.py``; the rule has its negative controls in ``test_cpu_cases.py``."""

from __future__ import annotations

import pytest
import torch
from support.experts_cases import CASES, FP16, FP32, explicit_truth, make, poisoned, run, violations

from ms4_kernels.moe.native import experts_native
from ms4_kernels.native import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler: the plain torch path serves instead")
SERVED = [case for case in CASES if case.dtype != FP16]


@pytest.mark.parametrize("case", SERVED, ids=str)
def test_error_at_most_twice_that_of_plain_torch(case):
    with poisoned():
        actual = run(experts_native, make(case))
    assert violations(actual, case) == []


@pytest.mark.parametrize("case", [case for case in SERVED if case.lora and case.dtype == FP32], ids=str)
def test_lora_gradients_equal_those_of_explicit_matrices(case):
    actual = run(experts_native, make(case))
    for name, exact in explicit_truth(case).items():
        error = (actual[name].double() - exact).norm() / exact.norm()
        assert error <= 1e-4, name  # what is promised; sums of some hundred terms in fp32 lose 1e-6


@pytest.mark.parametrize("case", [case for case in SERVED if case.routing == "ragged"], ids=str)
def test_recomputing_gives_the_same_bits(case):
    kept, recomputed = run(experts_native, make(case)), run(experts_native, make(case), recompute=True)
    for name, value in kept.items():
        assert torch.equal(value, recomputed[name]), name
