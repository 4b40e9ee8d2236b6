"""The CPU path, compiled and not, against torch's attention one document at a time: outputs, gradients, errors in narrow types, memory."""

from __future__ import annotations

import pytest
import torch
from support.attention_rows import (
    CAUSAL,
    ROWS,
    SCALE,
    WIDTHS,
    documents_of,
    exact_results,
    output_and_gradients,
    row_inputs,
    torch_attention,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ms4_kernels.attention import cpu
from ms4_kernels.attention.cpu import attention_cpu
from ms4_kernels.attention.native import serves
from ms4_kernels.attention.reference import attention_reference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(params=["compiled", "torch"])
def path(request, monkeypatch):
    """Which of the two runs; without a compiler there is only one."""
    if request.param == "torch":
        monkeypatch.setattr(cpu, "serves", lambda query: False)
    elif not serves(torch.zeros(1)):
        pytest.skip("no compiled kernels on this machine")
    return request.param


def results(lengths, inputs, grad_out, causal=True):
    documents = documents_of(lengths)
    return output_and_gradients(lambda *qkv: attention_cpu(*qkv, documents, SCALE, causal), inputs, grad_out)


def check(row, widths, dtype, causal=True):
    """Errors are at most twice those of plain torch in the same type."""
    lengths = ROWS[row]
    inputs, grad_out = row_inputs(lengths, WIDTHS[widths], dtype=dtype)
    truths = exact_results(lengths, inputs, grad_out, causal)
    plain = output_and_gradients(torch_attention(lengths, causal), inputs, grad_out)
    # On top, for where plain torch happens to be exact: gradients of scores are differences <dO, V> - <dO, O>, which vanish where a token
    # sees itself alone, of numbers as large as a product of two inputs, each rounded.
    largest = max(float(x.detach().abs().max()) for x in (*truths, *inputs, grad_out))
    for mine, other, truth in zip(results(lengths, inputs, grad_out, causal), plain, truths, strict=True):
        assert mine.dtype == dtype
        bound = 2 * (other.double() - truth).abs().max() + torch.finfo(dtype).eps * largest**2
        assert (mine.double() - truth).abs().max() <= bound


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("row", "widths"), [*((row, "equal widths") for row in ROWS), *(("mixed", widths) for widths in WIDTHS)])
def test_errors_are_at_most_twice_those_of_plain_torch(path, row, widths, dtype, causal):
    check(row, widths, DTYPES[dtype], CAUSAL[causal])


@pytest.mark.parametrize("causal", CAUSAL)
def test_control_one_document_too_many_is_seen(path, monkeypatch, causal):
    whole = cpu.attention_native, cpu.attention_sdpa
    merged = documents_of((*ROWS["mixed"][:-2], sum(ROWS["mixed"][-2:])))
    for name, attend in zip(("attention_native", "attention_sdpa"), whole, strict=True):
        monkeypatch.setattr(cpu, name, lambda q, k, v, documents, scale, causal, attend=attend: attend(q, k, v, merged, scale, causal))
    with pytest.raises(AssertionError):
        check("mixed", "equal widths", torch.float32, CAUSAL[causal])


def test_later_tokens_and_other_documents_do_not_count(path):
    lengths = (130, 20, 7, 96)
    inputs, _ = row_inputs(lengths, dtype=torch.float32)
    changed = [x.detach().clone() for x in inputs]
    for x in changed:
        x[140:157] += 10.0  # from the middle of the second document to the end of the third
    documents = documents_of(lengths)
    before, after = attention_cpu(*inputs, documents, SCALE), attention_cpu(*changed, documents, SCALE)
    assert torch.equal(before[:140], after[:140])
    assert torch.equal(before[157:], after[157:])
    assert (before[140:157] - after[140:157]).abs().amax(dim=(1, 2)).min() > 1.0


def test_two_runs_are_bit_identical(path):
    inputs, grad_out = row_inputs(ROWS["mixed"], dtype=torch.float32)
    first, second = (results(ROWS["mixed"], inputs, grad_out) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_fp64_is_left_to_torch():
    inputs, grad_out = row_inputs(ROWS["mixed"])
    for mine, truth in zip(results(ROWS["mixed"], inputs, grad_out), exact_results(ROWS["mixed"], inputs, grad_out), strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10)  # only the order of sums differs


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("lengths", [(1500,), (700, 650, 20, 90, 40)], ids=["one document", "packed"])
def test_torch_never_holds_all_scores(path, lengths):
    inputs, grad_out = row_inputs(lengths, dtype=torch.float32)
    with LargestTensor() as watch:
        results(lengths, inputs, grad_out)
    assert watch.largest <= 1.34 * max(x.numel() for x in inputs) * 21 / 16  # values are a slice of 21 columns; a quarter may be padding
    with LargestTensor() as control:
        attention_reference(*(x[: lengths[0]] for x in inputs), documents_of(lengths[:1]), SCALE)
    assert control.largest >= lengths[0] ** 2


def test_no_score_is_saved(path):
    lengths = (700, 650, 20, 90, 40)
    inputs, _ = row_inputs(lengths, dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        attention_cpu(*inputs, documents_of(lengths), SCALE)
    if path == "compiled":
        assert sorted(x.data_ptr() for x in saved) == sorted(x.data_ptr() for x in inputs)
    else:  # spread inputs and output, and one number per query
        assert sum(x.numel() for x in saved) <= 1.34 * 6 * max(x.numel() for x in inputs)
