"""Chat bodies: whatever OpenAI's client sends of what we know is accepted, its types being the oracle."""

from __future__ import annotations

import typing

from openai.types.chat import completion_create_params

from ms4_train.serving.chat_fields import ChatRequest

# What OpenAI's API has and this server does not: each would change the answer, so that it may not be passed over in silence.
UNKNOWN = {"verbosity", "moderation", "prompt_cache_options"}


def test_every_field_of_openais_client_is_known_or_left_out_on_purpose() -> None:
    theirs = set(typing.get_type_hints(completion_create_params.CompletionCreateParamsNonStreaming, include_extras=False))
    ours = {field.alias or name for name, field in ChatRequest.model_fields.items()}
    assert theirs - ours == UNKNOWN & theirs


def test_a_message_that_the_client_got_can_be_sent_back() -> None:
    from openai.types.chat import ChatCompletionMessage

    call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    got = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "x", "reasoning": "x", "refusal": None}
    )
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}, got.model_dump()]}
    assert ChatRequest.model_validate(body).messages[1].tool_calls is not None


def test_parts_of_all_kinds() -> None:
    parts = [
        {"type": "text", "text": "x"},
        {"type": "image_url", "image_url": {"url": "data:", "detail": "low"}},
        {"type": "image_url", "image_url": "data:"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "x"}], "closed": True},
    ]
    assert len(ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": parts}]}).messages[0].content or "") == 4
