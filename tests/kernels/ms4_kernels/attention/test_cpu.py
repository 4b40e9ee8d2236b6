"""The CPU path against torch's attention one document at a time: outputs, gradients, errors in narrow types, memory."""

from __future__ import annotations

import pytest
import torch
from support.attention_rows import (
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
from ms4_kernels.attention.cpu import BLOCK_SCORES, attention_cpu
from ms4_kernels.attention.reference import attention_reference

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # fp64: only the order of sums differs


def results(lengths, inputs, grad_out):
    documents = documents_of(lengths)
    return output_and_gradients(lambda *qkv: attention_cpu(*qkv, documents, SCALE), inputs, grad_out)


def check(lengths, widths=(16, 16)):
    inputs, grad_out = row_inputs(lengths, widths)
    for mine, truth in zip(results(lengths, inputs, grad_out), exact_results(lengths, inputs, grad_out), strict=True):
        torch.testing.assert_close(mine, truth, **EXACT)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("row", ROWS)
def test_equals_torch(row, widths):
    check(ROWS[row], WIDTHS[widths])


@pytest.mark.parametrize("block_scores", [1, 3 * 64 * 64, 2 * 3 * 64 * 64])
def test_equals_torch_whatever_a_block_holds(monkeypatch, block_scores):
    """One head at a time as for very long documents, the heads of one document, several documents."""
    monkeypatch.setattr(cpu, "BLOCK_SCORES", block_scores)
    for row in ROWS.values():
        check(row)


@pytest.mark.parametrize("row", ["mixed", "many tiny", "equal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_errors_are_at_most_twice_those_of_plain_torch(row, dtype):
    lengths = ROWS[row]
    inputs, grad_out = row_inputs(lengths, dtype=dtype)
    truths = exact_results(lengths, inputs, grad_out)
    plain = output_and_gradients(torch_attention(lengths), inputs, grad_out)
    for mine, other, truth in zip(results(lengths, inputs, grad_out), plain, truths, strict=True):
        assert mine.dtype == dtype
        # The bound of flash-attention's tests, plus one rounding of the largest value for where plain torch happens to be exact.
        bound = 2 * (other.double() - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
        assert (mine.double() - truth).abs().max() <= bound


def test_gradcheck():
    inputs, _ = row_inputs((3, 1, 2), (2, 3), heads=2)
    documents = documents_of((3, 1, 2))
    assert torch.autograd.gradcheck(lambda *qkv: attention_cpu(*qkv, documents, SCALE), inputs)


def test_control_a_mask_off_by_one_is_seen(monkeypatch):
    whole = torch.Tensor.triu_
    monkeypatch.setattr(torch.Tensor, "triu_", lambda x, diagonal: whole(x, diagonal + 1))
    with pytest.raises(AssertionError):
        check((150,))


def test_later_tokens_and_other_documents_do_not_count():
    lengths = (130, 20, 7, 96)
    (query, key, value), _ = row_inputs(lengths)
    changed = [x.detach().clone() for x in (query, key, value)]
    for x in changed:
        x[140:157] += 10.0  # from the middle of the second document to the end of the third
    documents = documents_of(lengths)
    before, after = attention_cpu(query, key, value, documents, SCALE), attention_cpu(*changed, documents, SCALE)
    assert torch.equal(before[:140], after[:140])
    assert torch.equal(before[157:], after[157:])
    assert (before[140:157] - after[140:157]).abs().amax(dim=(1, 2)).min() > 1.0


def test_two_runs_are_bit_identical():
    inputs, grad_out = row_inputs(ROWS["mixed"], dtype=torch.float32)
    first, second = (results(ROWS["mixed"], inputs, grad_out) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("lengths", [(2500,), (700, 650, 20, 90, 40)], ids=["one document", "packed"])
def test_memory_is_linear_in_the_tokens(lengths):
    inputs, grad_out = row_inputs(lengths, heads=2, dtype=torch.float32)
    with LargestTensor() as watch:
        results(lengths, inputs, grad_out)
    assert watch.largest <= BLOCK_SCORES
    with LargestTensor() as control:
        attention_reference(*(x[: lengths[0]] for x in inputs), documents_of(lengths[:1]), SCALE)
    assert control.largest >= lengths[0] ** 2


def test_only_the_inputs_are_saved():
    inputs, _ = row_inputs(ROWS["mixed"], dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        attention_cpu(*inputs, documents_of(ROWS["mixed"]), SCALE)
    assert sorted(x.data_ptr() for x in saved) == sorted(x.data_ptr() for x in inputs)
