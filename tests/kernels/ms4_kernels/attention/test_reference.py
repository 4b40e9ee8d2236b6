"""The definition against torch's own attention, one document at a time."""

from __future__ import annotations

import pytest
import torch
from support.attention_rows import CAUSAL, ROWS, SCALE, WIDTHS, documents_of, exact_results, output_and_gradients, row_inputs

from ms4_kernels.attention.reference import attention_reference


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("row", ROWS)
def test_equals_torch(row, widths, causal):
    lengths = ROWS[row]
    inputs, grad_out = row_inputs(lengths, WIDTHS[widths])
    documents = documents_of(lengths)
    got = output_and_gradients(lambda *qkv: attention_reference(*qkv, documents, SCALE, CAUSAL[causal]), inputs, grad_out)
    for mine, truth in zip(got, exact_results(lengths, inputs, grad_out, CAUSAL[causal]), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10)  # fp64: only the order of sums differs


def test_bf16_is_computed_wide():
    inputs, _ = row_inputs((40,), dtype=torch.bfloat16)
    out = attention_reference(*inputs, documents_of((40,)), SCALE)
    assert out.dtype == torch.bfloat16
    truth = attention_reference(*(x.double() for x in inputs), documents_of((40,)), SCALE)
    torch.testing.assert_close(out.double(), truth, rtol=2**-8, atol=1e-5)  # one rounding to bf16, of 8 bits
