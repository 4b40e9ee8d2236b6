"""Log probabilities against torch's log_softmax in fp64 and a sort in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ms4_train.inference import logprobs as module
from ms4_train.inference.logprobs import prompt_logprobs, token_logprobs
from ms4_train.inference.request import TokenLogprobs

# The sum over n tokens is exact to n^2 * 2^-62 of the largest term: 1e-10 for 20,000, and 4e-9 for 131,072 tokens.
TOLERANCE = 1e-8


def check(found: Sequence[TokenLogprobs], logits_nv: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> None:
    wanted_nv = torch.log_softmax(logits_nv.double(), -1)
    assert len(found) == len(token_ids)
    for item, logits, wanted, token_id, count in zip(found, logits_nv.tolist(), wanted_nv, token_ids, tops, strict=True):
        assert item.token_id == token_id
        assert item.logprob == pytest.approx(wanted[token_id].item(), abs=TOLERANCE)
        assert item.rank == sum(logit >= logits[token_id] for logit in logits)
        ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:count]
        assert [token for token, _ in item.top] == ranked
        for token, logprob in item.top:
            assert logprob == pytest.approx(wanted[token].item(), abs=TOLERANCE)


@pytest.mark.parametrize("size", [3, 438, 20_000])
@pytest.mark.parametrize("scale", [0.1, 5.0, 40.0])
def test_logprobs_are_log_softmax(size: int, scale: float) -> None:
    torch.manual_seed(size)
    logits = torch.randn(5, size) * scale
    token_ids = [0, 1, 2, size - 1, int(logits[4].argmax())]
    tops = [0, 1, min(size, 20), 2, 5 if size > 5 else 3]
    found = token_logprobs(logits, token_ids, tops)
    check(found, logits, token_ids, tops)
    assert found[4].rank == 1


def test_ties_are_named_by_id_and_share_a_rank() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 1.0], [2.0] * 6])
    found = token_logprobs(logits, [4, 0], [4, 3])
    check(found, logits, [4, 0], [4, 3])
    assert [token for token, _ in found[0].top] == [1, 3, 0, 2]
    assert (found[0].rank, found[1].rank) == (6, 6)


def test_prompt_logprobs_leave_out_ids_past_the_vocabulary() -> None:
    torch.manual_seed(1)
    logits = torch.randn(9, 50)
    logits[:, 40:] = 1000.0
    next_ids = torch.arange(9)
    check(prompt_logprobs(logits, next_ids, 3, 40), logits[:, :40], next_ids.tolist(), [3] * 9)


def test_parts_and_company_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    logits = torch.randn(17, 3000)
    token_ids = list(range(17))
    whole = token_logprobs(logits, token_ids, [2] * 17)
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 3000 * 5)
    assert token_logprobs(logits, token_ids, [2] * 17) == whole
    assert [token_logprobs(logits[row : row + 1], [row], [2])[0] for row in range(17)] == whole


def test_rows_that_are_not_finite_say_so() -> None:
    logits = torch.zeros(2, 5)
    logits[0, 3] = math.nan
    found = prompt_logprobs(logits, torch.tensor([1, 1]), 2, 5)
    assert math.isnan(found[0].logprob)
    assert found[1].logprob == pytest.approx(-math.log(5))
