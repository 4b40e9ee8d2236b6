"""Which backend is chosen and what is said about it; what is refused; that all backends that run here agree."""

from __future__ import annotations

import logging

import pytest
import torch
from support.attention_rows import CAUSAL, SCALE, documents_of, exact_results, row_inputs

from ms4_kernels.attention import packed_attention
from ms4_kernels.attention.interface import _choose

LENGTHS = (70, 5, 130, 9)
BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64


@pytest.fixture(autouse=True)
def _fresh():
    _choose.cache_clear()
    yield
    _choose.cache_clear()


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("backend", ["auto", "reference", "cpu", "sdpa", "flex"])
@torch.no_grad()
def test_backends_agree(backend, causal):
    inputs, grad_out = row_inputs(LENGTHS)
    with torch.enable_grad():
        expected = exact_results(LENGTHS, inputs, grad_out, CAUSAL[causal])[0]
        other = exact_results(LENGTHS, inputs, grad_out, not CAUSAL[causal])[0]
    plain = [x.detach() for x in inputs]
    out = packed_attention(*plain, documents_of(LENGTHS), scale=SCALE, causal=CAUSAL[causal], backend=backend)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)  # fp64: only the order of sums differs
    assert (out - other).abs().max() > 0.1


@pytest.mark.parametrize(
    ("device", "dtype", "widths", "package", "triton", "chosen", "says"),
    [
        ("cpu", FP32, (16, 16), None, False, "cpu", "no GPU"),
        ("cuda", BF16, (128, 128), "flash_attn", True, "flash", "FlashAttention is installed"),
        ("cuda", BF16, (128, 128), None, True, "flex", "pip install flash-attn"),
        ("cuda", FP32, (128, 128), "flash_attn", True, "flex", "no kernels for float32"),
        ("cuda", BF16, (128, 320), "flash_attn", True, "flex", "320 wide, it serves at most 256"),
        ("cuda", BF16, (128, 128), None, False, "sdpa", "Triton is not installed"),
        ("cuda", FP64, (128, 128), "flash_attn", True, "sdpa", "no kernels for float64"),
        ("cuda", FP32, (8, 16), None, True, "sdpa", "needs at least 16"),
        ("mps", FP32, (64, 64), None, False, "sdpa", "the only one for mps"),
    ],
)
def test_choice_is_said_once_with_its_reason(caplog, device, dtype, widths, package, triton, chosen, says):
    with caplog.at_level(logging.INFO, "ms4_kernels"):
        assert _choose("auto", device, dtype, widths, package, triton) == chosen
        assert _choose("auto", device, dtype, widths, package, triton) == chosen
    (record,) = caplog.records
    assert f"{chosen} backend on {device}" in record.getMessage()
    assert says in record.getMessage()
    # On a GPU, going without FlashAttention must not pass unnoticed.
    assert (record.levelno == logging.WARNING) == (device == "cuda" and chosen != "flash")


def test_each_kind_of_attention_is_said(caplog):
    with caplog.at_level(logging.INFO, "ms4_kernels"):
        for causal in (True, False, False):
            _choose("auto", "cpu", FP32, (16, 16), None, False, causal)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["attention operation, causal", "attention operation, full"]


@pytest.mark.parametrize(
    ("backend", "device", "widths", "says"),
    [
        ("paged", "cpu", (16, 16), "unknown attention backend"),
        ("flash", "cpu", (16, 16), "needs a GPU"),
        ("flash", "cuda", (16, 16), "pip install flash-attn"),
        ("flash", "cuda", (16, 257), "at most 256"),
        ("flex", "cuda", (8, 8), "at least 16"),
        ("flex", "cuda", (16, 16), "Triton is not installed"),
        ("flex", "mps", (16, 16), "needs a GPU"),
        ("cpu", "cuda", (16, 16), "for CPUs"),
    ],
)
def test_what_cannot_run_is_refused(backend, device, widths, says):
    with pytest.raises(ValueError, match=says):
        _choose(backend, device, BF16, widths, None, False)


def test_misfits_are_refused():
    (query, key, value), _ = row_inputs(LENGTHS)
    documents = documents_of(LENGTHS)
    for inputs, says in [
        ((query, key[:-1], value), "not \\[T, h, width\\]"),
        ((query, key[..., :-1], value), "not \\[T, h, width\\]"),
        ((query, key, value[:, :2]), "not \\[T, h, width\\]"),
        ((query[:-1], key[:-1], value[:-1]), "213 tokens, but documents of 214"),
        ((query, key.float(), value), "keys torch.float32"),
        ((query, key.to("meta"), value), "keys on meta"),
    ]:
        with pytest.raises(ValueError, match=says):
            packed_attention(*inputs, documents, scale=SCALE)
