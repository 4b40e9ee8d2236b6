"""Errors in OpenAI's form: which field is named, which status it has, what is left out."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ms4_train.errors import EngineError, RowError, UntrustedInputError
from ms4_train.serving.chat_fields import ChatRequest
from ms4_train.serving.failures import MAX_MESSAGE, ApiError, engine_failure, from_ms4_error, from_validation

USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_field"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [USER, 3]}, "messages[1]", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_field"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "missing_field"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]", "invalid_value"),
        ({"messages": [{**USER, "weight": 1}]}, "messages[0].weight", "unknown_field"),
        ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
        ({"logit_bias": {"5": 1000}}, "logit_bias.5", "invalid_value"),
        ({"tool_choice": "always"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name", "missing_field"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"reasoning_effort": "medium"}, "reasoning_effort", "invalid_value"),
        ({"functions": []}, "functions", "invalid_value"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_faulty_field_is_named(change: dict[str, Any], param: str, code: str) -> None:
    body = {"model": "m", "messages": [USER], **change}
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(body)
    error = from_validation(caught.value, body)
    assert (error.status, error.param, error.error_code) == (400, param, code)
    assert error.body["error"]["param"] == param
    assert "\n" not in error.message


def test_our_own_errors_become_400_with_the_field() -> None:
    error = from_ms4_error(RowError("is empty.", row_code="empty-user", key="messages[2]", fix="write something."))
    assert (error.status, error.param, error.error_code) == (400, "messages[2]", "empty-user")
    assert error.message == "messages[2]: is empty. Write something."
    assert from_ms4_error(EngineError("too large.", key="thinking_budget")).param == "thinking_token_budget"


def test_ids_and_files_of_ours_are_not_told() -> None:
    assert from_ms4_error(EngineError("x.", key="chatcmpl-1234")).param is None
    told = from_ms4_error(UntrustedInputError("cannot be read.", file="secret/place")).body
    assert "secret" not in str(told)
    assert engine_failure(RuntimeError("secret detail")).body["error"]["message"].count("secret") == 0


def test_headers_follow_the_status() -> None:
    assert ApiError(429, "x", code="overloaded", retry_after=3).headers == {"Retry-After": "3"}
    assert ApiError(401, "x", code="k").headers == {"WWW-Authenticate": "Bearer"}
    assert ApiError(413, "x", code="k", close=True).headers == {"Connection": "close"}


def test_long_messages_are_cut() -> None:
    assert len(ApiError(400, "x" * 10_000, code="k").body["error"]["message"]) == MAX_MESSAGE


def test_an_api_error_stays_what_it_is() -> None:
    error = ApiError(413, "x", code="k")
    assert from_ms4_error(error) is error
