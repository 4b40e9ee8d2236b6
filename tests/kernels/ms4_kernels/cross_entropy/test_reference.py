"""The definition against torch's own cross-entropy."""

from __future__ import annotations

import torch
from support.loss_inputs import exact_results, loss_and_gradients, loss_inputs

from ms4_kernels.cross_entropy.reference import linear_cross_entropy_reference


def test_equals_torch():
    inputs = loss_inputs(masked=0.0)
    for mine, truth in zip(loss_and_gradients(linear_cross_entropy_reference, *inputs), exact_results(*inputs), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-13)  # fp64: only the order of sums differs


def test_bf16_logits_are_normalised_wide():
    assert linear_cross_entropy_reference(*loss_inputs(torch.bfloat16, masked=0.0)).dtype == torch.float32
