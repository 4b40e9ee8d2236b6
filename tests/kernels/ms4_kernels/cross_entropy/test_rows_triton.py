"""The Triton kernel in the interpreter: errors beside those of torch in the same type, determinism, bytes, planted bugs."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")

from support.loss_inputs import exact_results, loss_and_gradients, loss_inputs, plain_loss, rows_inputs, rows_results
from support.mutations import plant
from support.triton_interpreter import OutOfBoundsError, RaceError, interpreted

from ms4_kernels.cross_entropy import linear_cross_entropy, rows_triton

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def errors_within_twice_torch(dtype, tokens, vocabulary, spread):
    """Run the kernel with and without gradient; whether both are as near to fp64 as torch in the same type, within a factor of two."""
    logits_cv, target_c, exact_loss, exact_grad_cv = rows_inputs(dtype, tokens, vocabulary, spread)
    with interpreted() as launches:
        only_loss, nothing = rows_triton.rows_triton(logits_cv, target_c, False)
        loss, grad_cv = rows_triton.rows_triton(logits_cv.clone(), target_c, True)
    assert len(launches) == 2
    assert nothing is None
    plain_loss, plain_grad_cv = rows_results(logits_cv, target_c)
    # One rounding of the sum, for where torch happens to be exact.
    bound = 2 * (plain_loss.double() - exact_loss).abs() + torch.finfo(torch.float32).eps * exact_loss
    grad_bound = 2 * (plain_grad_cv.double() - exact_grad_cv).abs().max() + torch.finfo(torch.float32).eps
    losses = all((mine.double() - exact_loss).abs() <= bound for mine in (loss, only_loss))
    return losses and bool((grad_cv.double() - exact_grad_cv).abs().max() <= grad_bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [1.0, 30.0, 300.0])
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 1), (5, 37), (3, 4096), (2, 9000)])
def test_error_is_at_most_twice_that_of_torch(dtype, spread, tokens, vocabulary):
    """Vocabularies within one step of the lanes, just filling it, and of several steps, the last one ragged."""
    assert errors_within_twice_torch(DTYPES[dtype], tokens, vocabulary, spread)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [0.0, 0.4, 1.0])
def test_the_whole_operation_through_dispatch(dtype, masked):
    inputs = loss_inputs(DTYPES[dtype], tokens=40, hidden=16, vocabulary=70, masked=masked)
    with interpreted() as launches:
        got = loss_and_gradients(lambda *args: linear_cross_entropy(*args, chunk_tokens=16), *inputs)
    trained = int((inputs[2] >= 0).sum())
    assert len(launches) == -(-trained // 16)
    plain = loss_and_gradients(plain_loss, *inputs)
    for mine, other, truth in zip(got, plain, exact_results(*inputs), strict=True):
        # Twice torch's error; one rounding of the largest value for where torch happens to be exact.
        bound = 2 * (other.double() - truth).abs().max() + torch.finfo(torch.float32).eps * truth.abs().max()
        assert (mine.double() - truth).abs().max() <= bound


def test_two_runs_are_bit_identical():
    logits_cv, target_c, *_ = rows_inputs(torch.bfloat16, 3, 9000)
    with interpreted():
        first, second = (rows_triton.rows_triton(logits_cv.clone(), target_c, True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_what_is_not_a_number_shows():
    logits_cv, _, *_ = rows_inputs(torch.float32, 4, 20)
    with interpreted():
        for target in (-1, 20):
            assert math.isnan(rows_triton.rows_triton(logits_cv.clone(), torch.tensor([0, target, 3, 4]), False)[0])
        logits_cv[2, 7] = math.nan
        assert math.isnan(rows_triton.rows_triton(logits_cv.clone(), torch.tensor([0, 1, 3, 4]), False)[0])


PLANTED = {
    "the normaliser is rounded": ("(logit_l - top) - rest", "logit_l - (top + rest)", None),
    "the old sum is not rescaled": ("sum_l = sum_l * tl.exp(top_l - new_l) + ", "sum_l = sum_l + ", None),
    "the onehot is forgotten": ("- tl.where(column_l == wanted, 1.0, 0.0)", "", None),
    "no mask on the store": ("tl.store(row + column_l, grad_l.to(logits.dtype.element_ty), mask=inside_l)",
                             "tl.store(row + column_l, grad_l.to(logits.dtype.element_ty))", (OutOfBoundsError, RaceError)),
    "no mask on the load": ('mask=column_l < vocabulary, other=float("-inf")', "", (OutOfBoundsError, RaceError)),
    "all programs store one loss": ("tl.store(loss + token, ", "tl.store(loss, ", RaceError),
}  # fmt: skip
"""What is planted -> (text of the kernel, what replaces it, what the sanitizer raises; None where values are wrong)."""


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(monkeypatch, tmp_path, bug):
    old, new, raised = PLANTED[bug]
    case = (torch.float32, 3, 9000, 30.0)
    assert errors_within_twice_torch(*case)
    plant(monkeypatch, tmp_path, rows_triton, old, new)
    if raised is None:
        assert not errors_within_twice_torch(*case)
    else:
        with pytest.raises(raised):
            errors_within_twice_torch(*case)


@pytest.mark.parametrize(("write", "passes"), [(True, 2), (False, 1)])
def test_each_logit_is_read_once_a_pass_and_written_once(write, passes):
    logits_cv, target_c, *_ = rows_inputs(torch.bfloat16, 3, 9000)
    with interpreted() as launches:
        rows_triton.rows_triton(logits_cv, target_c, write)
    traffic = launches[0].arguments["logits"]
    assert traffic.read_bytes == passes * logits_cv.numel() * logits_cv.element_size()
    assert traffic.written_bytes == (logits_cv.numel() * logits_cv.element_size() if write else 0)
