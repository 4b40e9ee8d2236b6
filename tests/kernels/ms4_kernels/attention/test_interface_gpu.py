"""Packed attention on a CUDA device, by whatever ``auto`` takes there and by each backend it has. ``make test-gpu`` runs it."""

from __future__ import annotations

import pytest
import torch
from support.attention_rows import SCALE, exact_results, output_and_gradients, row_inputs, torch_attention

from ms4_kernels.attention import PackedDocuments, packed_causal_attention
from ms4_kernels.attention.flash import flash_package

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LENGTHS = (300, 84, 128, 128, 3, 400, 1, 250)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["auto", "sdpa", "flex", "flash"])
def test_error_is_at_most_twice_that_of_plain_torch(backend, dtype):
    if backend == "flash" and (flash_package(torch.device("cuda")) is None or dtype == "fp32"):
        pytest.skip("flash-attn is not installed, or has no kernels for this type")
    inputs, grad_out = row_inputs(LENGTHS, (64, 64), dtype=DTYPES[dtype])
    truths = exact_results(LENGTHS, inputs, grad_out)
    plain = output_and_gradients(torch_attention(LENGTHS), inputs, grad_out)
    documents = PackedDocuments(LENGTHS, torch.device("cuda"))
    moved = [x.detach().cuda().requires_grad_() for x in inputs]
    got = output_and_gradients(lambda *qkv: packed_causal_attention(*qkv, documents, scale=SCALE, backend=backend), moved, grad_out.cuda())
    largest = max(float(x.detach().abs().max()) for x in (*truths, *inputs, grad_out))
    # FlexAttention's fp32 products may be TF32, of 11 bits.
    eps = 2.0**-11 if dtype == "fp32" else torch.finfo(DTYPES[dtype]).eps
    for mine, other, truth in zip(got, plain, truths, strict=True):
        # Twice plain torch's error, and one rounding of a product of two inputs.
        bound = 2 * (other.double() - truth).abs().max() + eps * largest**2
        assert (mine.double().cpu() - truth).abs().max() <= bound
