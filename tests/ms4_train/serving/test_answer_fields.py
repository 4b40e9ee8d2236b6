"""The stated forms of responses: OpenAI's client parses whatever they allow, and they allow nothing unstated."""

from __future__ import annotations

import pytest
from openai.types.chat import ChatCompletion as TheirCompletion
from pydantic import ValidationError

from ms4_train.serving.answer_fields import ChatCompletion, ErrorBody

USAGE = {
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "total_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
CHOICE = {
    "index": 0,
    "message": {"role": "assistant", "content": "x", "refusal": None},
    "logprobs": None,
    "finish_reason": "stop",
    "stop_reason": None,
    "thinking": "none",
}
RESPONSE = {"id": "i", "object": "chat.completion", "created": 1, "model": "m", "choices": [CHOICE], "usage": USAGE}


def test_openais_types_parse_the_form() -> None:
    assert ChatCompletion.model_validate(RESPONSE).choices[0].message.content == "x"
    assert TheirCompletion.model_validate(RESPONSE).choices[0].message.content == "x"


def test_unstated_fields_are_no_part_of_it() -> None:
    for wrong in ({**RESPONSE, "more": 1}, {**RESPONSE, "choices": [{**CHOICE, "finish_reason": "error"}]}):
        with pytest.raises(ValidationError):
            ChatCompletion.model_validate(wrong)
    with pytest.raises(ValidationError):
        ErrorBody.model_validate({"error": {"message": "x"}})
