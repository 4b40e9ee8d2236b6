"""Packed attention on a CUDA device by each backend that is there, against fp64 there, document by document. ``make test-gpu`` runs it.

The bar is attention in plain operations of the call's type, scores rounded to it, as FlashAttention's own tests have it: torch's ``MATH``
attention widens bf16 inside, and a kernel that keeps probabilities in bf16 does not.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support import gpu
from support.attention_rows import CAUSAL, ROWS, SCALE, exact_results, output_and_gradients, row_inputs
from support.gpu import differing, moved, needs_gpu, poisoned, worse_than_torch

from ms4_kernels.attention import PackedDocuments, packed_attention

pytestmark = needs_gpu
NAMES = ("out", "dquery", "dkey", "dvalue")
ROWS_THERE = {name: ROWS[name] for name in ("one token", "a block and one", "equal", "mixed")} | {"long": (1000, 300, 2, 1100)}
WIDTHS = [(64, 64), (128, 128), (96, 64)]


def plain_attention(lengths, causal=True):
    """Attention of each document in plain operations, in the type of the inputs."""

    def one(query_thx, key_thx, value_thv):
        query_htx, key_htx, value_htv = (x.transpose(0, 1) for x in (query_thx, key_thx, value_thv))
        scores_htt = query_htx @ key_htx.transpose(1, 2) * SCALE
        hidden_tt = torch.ones(scores_htt.shape[1:], dtype=torch.bool, device=scores_htt.device).triu(1)
        if causal:
            scores_htt = scores_htt.masked_fill(hidden_tt, float("-inf"))
        return (scores_htt.softmax(dim=-1) @ value_htv).transpose(0, 1)

    return lambda *inputs: torch.cat([one(*piece) for piece in zip(*(x.split(lengths) for x in inputs), strict=True)])


def named(results) -> dict[str, torch.Tensor]:
    return dict(zip(NAMES, results, strict=True))


def inputs_of(lengths, widths, dtype):
    inputs, grad_out = row_inputs(lengths, widths, heads=4, dtype=dtype)
    return tuple(moved(x) for x in inputs), moved(grad_out)


def ours(lengths, inputs, grad_out, backend, causal=True):
    documents = PackedDocuments(tuple(lengths), gpu.DEVICE)
    try:
        attend = partial(packed_attention, documents=documents, scale=SCALE, causal=causal, backend=backend)
        return named(output_and_gradients(attend, inputs, grad_out))
    except ValueError as error:
        if "cannot be used" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("row", ROWS_THERE)
@pytest.mark.parametrize("backend", ["auto", "flash", "flex", "sdpa"])
def test_error_at_most_twice_that_of_torch(backend, row, widths, dtype, causal):
    lengths = ROWS_THERE[row]
    inputs, grad_out = inputs_of(lengths, widths, dtype)
    got = ours(lengths, inputs, grad_out, backend, CAUSAL[causal])
    plain = named(output_and_gradients(plain_attention(lengths, CAUSAL[causal]), inputs, grad_out))
    exact = named(exact_results(lengths, inputs, grad_out, CAUSAL[causal]))
    if dtype == torch.float32:
        # FlexAttention's fp32 products are TF32, of 11 bits, on some devices, whatever torch's matmul setting. SDPA's fused kernels are
        # torch's own and lose twice what plain operations do, some 1e-6.
        tolerance = 1e-5 if backend == "sdpa" else 1e-2
        for name, wide in exact.items():
            assert (got[name].double() - wide).norm() <= tolerance * wide.norm() + 1e-5, name
        return
    # A gradient that is zero in fp64 (one token: a softmax of one score) is made of roundings in both; no zeros are asked for.
    zeroless = [name for name, wide in exact.items() if bool((wide != 0).any())]
    got, plain, exact = ({name: x[name] for name in zeroless} for x in (got, plain, exact))
    assert worse_than_torch(got, plain, exact, dtype, zeros=False) == []


def test_two_runs_agree_to_the_bit():
    """Where torch is told to be deterministic, which FlashAttention's backward then is too."""
    lengths = ROWS_THERE["long"]
    inputs, grad_out = inputs_of(lengths, (128, 128), torch.bfloat16)
    with poisoned():
        assert differing(*(ours(lengths, inputs, grad_out, "auto") for _ in range(2))) == []


def test_memory_is_linear_in_the_tokens():
    """Twice the documents take about twice the memory; a mask or scores of the whole row would take four times as much."""
    peaks = []
    for count in (8, 16):
        lengths = (512,) * count
        inputs, grad_out = inputs_of(lengths, (64, 64), torch.bfloat16)
        ours(lengths, inputs, grad_out, "auto")  # compiled
        peaks.append(gpu.peak_bytes(lambda lengths=lengths, inputs=inputs, grad=grad_out: ours(lengths, inputs, grad, "auto")))
    assert peaks[1] <= 2.5 * peaks[0]
