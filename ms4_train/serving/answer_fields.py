"""The forms of the server's responses, for its OpenAPI description and for tests; responses themselves are made as plain objects.

Exercise it: ``pytest tests/ms4_train/serving/test_answer_fields.py``.
"""

from __future__ import annotations

from typing import Literal

from ms4_train.serving.fields import Strict

FinishReason = Literal["stop", "length", "tool_calls"]


class Fault(Strict):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field of the request, where it is one."""
    code: str | None


class ErrorBody(Strict):
    """The body of every response that is no answer."""

    error: Fault


class PromptTokens(Strict):
    """Parts of a prompt's tokens."""

    cached_tokens: int


class AnswerTokens(Strict):
    """Parts of the answers' tokens."""

    reasoning_tokens: int


class Usage(Strict):
    """Tokens of a response."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: AnswerTokens | None = None


class Likelihood(Strict):
    """A token and its logprob."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLikelihood(Likelihood):
    """A chosen token beside the most likely ones."""

    top_logprobs: list[Likelihood]


class ChatLogprobs(Strict):
    """Of a choice."""

    content: list[TokenLikelihood]
    refusal: None = None


class PromptLikelihood(Strict):
    """Of one possible token of a prompt."""

    logprob: float
    rank: int
    decoded_token: str


class Function(Strict):
    """What is called."""

    name: str
    arguments: str


class Call(Strict):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: Function


class AnswerMessage(Strict):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None


class ChatChoice(Strict):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | None
    thinking: Literal["none", "open", "closed", "forced"]


class ChatCompletion(Strict):
    """A whole response to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[dict[str, PromptLikelihood] | None] | None = None


class TextLogprobs(Strict):
    """Of a choice."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Strict):
    """One answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | None
    prompt_logprobs: list[dict[str, PromptLikelihood] | None] | None = None


class TextCompletion(Strict):
    """A whole response to a completion request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(Strict):
    """A name that requests may use."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """The model itself."""
    parent: str | None
    """Of an adapter: the model."""
    max_model_len: int


class ModelList(Strict):
    """All names."""

    object: Literal["list"]
    data: list[ModelCard]


class DroppedAdapter(Strict):
    """An adapter that is no more."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]


class Health(Strict):
    """The server can answer."""

    status: Literal["ok"]
