"""Token counts of several answers: a prompt counts once."""

from __future__ import annotations

import pytest
from openai.types import CompletionUsage

from ms4_train.errors import EngineError
from ms4_train.inference.request import Completion
from ms4_train.serving.failures import ApiError
from ms4_train.serving.usage import check_finished, usage


def completion(index: int, reason="stop", **values) -> Completion:
    return Completion("r", [], reason, None, 10, 5, 0.1, index, cached_tokens=4, **values)


def test_a_prompt_counts_once() -> None:
    found = usage([completion(0), completion(1)], 3)
    assert found["total_tokens"] == found["prompt_tokens"] + found["completion_tokens"] == 20
    parsed = CompletionUsage.model_validate(found)
    assert parsed.prompt_tokens_details is not None
    assert parsed.completion_tokens_details is not None
    assert (parsed.prompt_tokens_details.cached_tokens, parsed.completion_tokens_details.reasoning_tokens) == (4, 3)
    assert "completion_tokens_details" not in usage([completion(0)], None)


def test_what_failed_is_no_answer() -> None:
    check_finished(completion(0, "length"))
    for reason in ("error", "cancelled"):
        with pytest.raises(ApiError) as caught:
            check_finished(completion(0, reason, error=EngineError("inside")))
        assert (caught.value.status, "inside" in caught.value.message) == (503, False)
