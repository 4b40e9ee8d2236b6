"""Bias and penalties against transformers' processor and OpenAI's published formula."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from ms4_train.inference.penalties import Bias, Penalties, TokenCounts, end_ids, forbid, is_penalised
from ms4_train.inference.sampling_params import SamplingParams

CPU = torch.device("cpu")
V = 50
# Both sides compute a few fp32 operations per logit.
TOLERANCE = 1e-6


def row(prompt: list[int], generated: list[int], **params: Any) -> SimpleNamespace:
    return SimpleNamespace(params=SamplingParams(**params), prompt_ids=prompt, generated_ids=generated)


def openai(logits: torch.Tensor, generated: list[int], frequency: float, presence: float) -> torch.Tensor:
    """``mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence`` (OpenAI's API guide, "Parameter details")."""
    count = torch.bincount(torch.tensor(generated, dtype=torch.int64), minlength=V).double()
    return logits.double() - count * frequency - (count > 0) * presence


def penalise(rows: list[SimpleNamespace], logits: torch.Tensor) -> torch.Tensor:
    edited = logits.clone()
    Penalties(list(enumerate(rows)), [TokenCounts(item, V) for item in rows], CPU, V).apply(edited)
    return edited


def test_the_repetition_penalty_is_transformers() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, V) * 5
    rows = [row([1, 2, 2, 3], [9, 2], repetition_penalty=1.7), row([4], [], repetition_penalty=0.6)]
    edited = penalise(rows, logits)
    for number, item in enumerate(rows):
        ids = torch.tensor([item.prompt_ids + item.generated_ids])
        wanted = RepetitionPenaltyLogitsProcessor(item.params.repetition_penalty)(ids, logits[number : number + 1].clone())
        torch.testing.assert_close(edited[number : number + 1], wanted, atol=TOLERANCE, rtol=TOLERANCE)


def test_frequency_and_presence_penalties_are_openais_and_leave_the_prompt_alone() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, V) * 5
    rows = [row([1, 2], [9, 2, 9, 9], frequency_penalty=0.4, presence_penalty=-0.3), row([1], [7], presence_penalty=1.5)]
    edited = penalise(rows, logits)
    torch.testing.assert_close(edited[0].double(), openai(logits[0], [9, 2, 9, 9], 0.4, -0.3), atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(edited[1].double(), openai(logits[1], [7], 0.0, 1.5), atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(edited[0, 1], logits[0, 1])


def test_all_three_follow_each_other_repetition_first() -> None:
    logits = torch.full((1, V), 3.0)
    edited = penalise([row([5], [6, 6], repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5)], logits)
    assert edited[0, 5].item() == 1.5
    assert edited[0, 6].item() == 1.5 - 0.5 - 0.5
    assert edited[0, 7].item() == 3.0


def test_counts_that_grow_with_the_answer_are_those_counted_at_once() -> None:
    """Long enough for the buffers to grow twice; two rows share them, one of them beginning late."""
    generator = torch.Generator().manual_seed(2)
    size = 400
    tokens = torch.randint(0, size, (2, 300), generator=generator).tolist()
    params: dict[str, Any] = {"frequency_penalty": 0.1, "presence_penalty": 0.2, "repetition_penalty": 1.1}
    rows = [row([1, 2, 3], [], **params), row([4], tokens[1][:7], **params)]
    logits = torch.randn(2, size, generator=generator)
    growing = Penalties(list(enumerate(rows)), [TokenCounts(item, size) for item in rows], CPU, size)
    for step in range(300):
        edited = logits.clone()
        growing.apply(edited)
        if step % 60 == 59:
            fresh = logits.clone()
            Penalties(list(enumerate(rows)), [TokenCounts(item, size) for item in rows], CPU, size).apply(fresh)
            assert torch.equal(edited, fresh)
        rows[0].generated_ids.append(tokens[0][step])
        if step + 7 < 300:
            rows[1].generated_ids.append(tokens[1][step + 7])


def test_bias_is_added_and_repeated_ids_add_up() -> None:
    logits = torch.zeros(2, V)
    Bias([row([1], [], logit_bias=((3, 5.0), (3, 1.5), (V + 3, 100.0))), row([1], [])], CPU, V).apply(logits)
    wanted = torch.zeros(2, V)
    wanted[0, 3] = 6.5
    assert torch.equal(logits, wanted), "an id past the vocabulary must not reach the next row"


def test_tokens_past_the_vocabulary_are_left_out() -> None:
    logits = torch.ones(2, V)
    edited = penalise([row([V + 1], [V + 2, 3], repetition_penalty=2.0), row([1], [], repetition_penalty=2.0)], logits)
    assert (edited != logits).nonzero().tolist() == [[0, 3], [1, 1]]


@pytest.mark.parametrize(
    ("params", "wanted"), [({}, [2]), ({"ignore_eos": True}, []), ({"stop_token_ids": (7, V)}, [2, 7]), ({"stop_token_ids": (2,)}, [2])]
)
def test_ends(params: dict, wanted: list[int]) -> None:
    assert end_ids(SamplingParams(**params), 2, V) == wanted


def test_forbidden_places_and_what_counts_as_penalised() -> None:
    logits = torch.zeros(2, 3)
    forbid(logits, [1, 5])
    assert logits.isinf().nonzero().tolist() == [[0, 1], [1, 2]]
    assert not is_penalised(SamplingParams(temperature=1.0, logit_bias=((1, 1.0),)))
    for key in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        assert is_penalised(SamplingParams(**{key: 1.2}))
