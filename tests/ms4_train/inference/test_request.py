"""Requests refuse what the engine could not serve, naming the request or the field."""

from __future__ import annotations

from typing import Any

import pytest

from ms4_train.errors import EngineError
from ms4_train.inference.request import MAX_SAMPLES, Completion, EngineStats, GenerationRequest
from ms4_train.inference.sampling_params import SamplingParams


@pytest.mark.parametrize("prompt_ids", [(), [1, 2], (1, -1), (1, 2.0), (True,)])
def test_prompts_that_are_not_token_ids_are_refused(prompt_ids: Any) -> None:
    with pytest.raises(EngineError) as caught:
        GenerationRequest("row-7", prompt_ids)
    assert caught.value.key == "row-7"


@pytest.mark.parametrize("n", [0, -1, MAX_SAMPLES + 1, 1.0, True])
def test_a_number_of_answers_out_of_range_is_refused(n: Any) -> None:
    with pytest.raises(EngineError) as caught:
        GenerationRequest("a", (1,), n=n)
    assert caught.value.key == "n"
    assert GenerationRequest("a", (1,), n=MAX_SAMPLES).n == MAX_SAMPLES


def test_requests_do_not_change_after_they_are_made() -> None:
    request = GenerationRequest("a", (1, 2))
    with pytest.raises(AttributeError):
        request.prompt_ids = (3,)  # pyright: ignore[reportAttributeAccessIssue]
    assert request.sampling == SamplingParams()


def test_results_do_not_share_what_changes() -> None:
    first, second = EngineStats(), EngineStats()
    first.finished["stop"] = 1
    assert second.finished == {}
    done = Completion("a", [5], "stop", None, prompt_tokens=2, generated_tokens=1, seconds=0.1)
    assert (done.index, done.thinking, done.logprobs, done.error) == (0, "none", None, None)
