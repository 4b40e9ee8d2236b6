"""Rectangles through torch's attention, against torch's attention one document at a time."""

from __future__ import annotations

import pytest
import torch
from support.attention_rows import CAUSAL, ROWS, SCALE, WIDTHS, documents_of, exact_results, output_and_gradients, row_inputs

from ms4_kernels.attention.sdpa import attention_sdpa


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("row", ROWS)
def test_equals_torch_document_by_document(row, widths, causal):
    lengths = ROWS[row]
    inputs, grad_out = row_inputs(lengths, WIDTHS[widths])
    documents = documents_of(lengths)
    got = output_and_gradients(lambda *qkv: attention_sdpa(*qkv, documents, SCALE, CAUSAL[causal]), inputs, grad_out)
    for mine, truth in zip(got, exact_results(lengths, inputs, grad_out, CAUSAL[causal]), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10)  # fp64: only the order of sums differs
