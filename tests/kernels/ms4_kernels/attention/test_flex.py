"""FlexAttention with our block mask, against torch's own mask builder and attention one document at a time."""

from __future__ import annotations

import pytest
import torch
from support.attention_rows import CAUSAL, ROWS, SCALE, WIDTHS, documents_of, exact_results, output_and_gradients, row_inputs
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_block_mask

from ms4_kernels.attention.flex import attention_flex, document_block_mask

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
LONG_ROWS = {**ROWS, "many blocks": (300, 84, 128, 128, 3, 400, 1, 250), "aligned": (256, 128, 384), "one long": (700,)}


def listed(count_q, index_qk):
    return [sorted(row[:count].tolist()) for count, row in zip(count_q.flatten().tolist(), index_qk.flatten(0, 2), strict=True)]


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("row", LONG_ROWS)
def test_blocks_equal_those_that_torch_finds(row, causal):
    documents = documents_of(LONG_ROWS[row])
    document_t = documents.document_t

    def sees(batch, head, query, key):
        same = document_t[query] == document_t[key]
        return same & (query >= key) if CAUSAL[causal] else same

    ours = document_block_mask(document_t, causal=CAUSAL[causal])
    theirs = create_block_mask(sees, None, None, documents.num_tokens, documents.num_tokens, device="cpu")
    assert listed(ours.kv_num_blocks, ours.kv_indices) == listed(theirs.kv_num_blocks, theirs.kv_indices)
    assert listed(ours.full_kv_num_blocks, ours.full_kv_indices) == listed(theirs.full_kv_num_blocks, theirs.full_kv_indices)
    assert (ours.seq_lengths, ours.BLOCK_SIZE) == (theirs.seq_lengths, theirs.BLOCK_SIZE)
    token_t = torch.arange(documents.num_tokens)
    ours_ts, theirs_ts = (mask.mask_mod(0, 0, token_t[:, None], token_t) for mask in (ours, theirs))
    assert torch.equal(ours_ts, theirs_ts)


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("row", ["one token", "mixed", "many blocks"])
def test_equals_torch(monkeypatch, row, widths, causal):
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)  # it refuses gradients on a CPU, though eager code has them
    lengths = LONG_ROWS[row]
    inputs, grad_out = row_inputs(lengths, WIDTHS[widths])
    documents = documents_of(lengths)
    got = output_and_gradients(lambda *qkv: attention_flex(*qkv, documents, SCALE, CAUSAL[causal]), inputs, grad_out)
    for mine, truth in zip(got, exact_results(lengths, inputs, grad_out, CAUSAL[causal]), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10)  # fp64: only the order of sums differs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", CAUSAL)
def test_compiled_equals_torch(causal):
    lengths = LONG_ROWS["many blocks"]
    inputs, grad_out = row_inputs(lengths, (32, 32), dtype=torch.float32)
    truths = exact_results(lengths, inputs, grad_out, CAUSAL[causal])
    documents = type(documents_of(lengths))(lengths, torch.device("cuda"))
    moved = [x.detach().cuda().requires_grad_() for x in inputs]
    got = output_and_gradients(lambda *qkv: attention_flex(*qkv, documents, SCALE, CAUSAL[causal]), moved, grad_out.cuda())
    for mine, truth in zip(got, truths, strict=True):
        # TF32 products, of 11 bits, over values of size one
        torch.testing.assert_close(mine.double().cpu(), truth, rtol=1e-2, atol=1e-2)
