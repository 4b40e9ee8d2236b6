"""The body of a chat completion request.

The forms of messages are checked here, what they say to each other (order, calls and results) where the prompt is made.
Exercise it: ``pytest tests/ms4_train/serving/test_chat_fields.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from ms4_train.serving.fields import Name, SharedFields, Strict, Whole


class TextPart(Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageAddress(Strict):
    """Where an image is: a data URL, or an address on an allowed host."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Accepted, not used: the model sees every image at its own size."""


class ImageUrlPart(Strict):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageAddress | str


class ThinkingPart(Strict):
    """An earlier thought of the assistant."""

    type: Literal["thinking"]
    thinking: str | list[TextPart]
    closed: bool | None = None


Part = Annotated[TextPart | ImageUrlPart | ThinkingPart, Field(discriminator="type")]


class CalledFunction(Strict):
    """What an earlier call called."""

    name: str
    arguments: str | dict[str, JsonValue] | None = None


class EarlierCall(Strict):
    """A call that the assistant made before."""

    id: str | None = None
    type: Literal["function"] | None = None
    index: Whole | None = None
    function: CalledFunction


class ChatMessage(Strict):
    """One message. ``developer`` counts as ``system``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(max_length=4096)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[EarlierCall] | None, Field(max_length=1024)] = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[JsonValue] | None = None
    audio: None = None
    function_call: None = None


class ToolFunction(Strict):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool that the model may call."""

    type: Literal["function"]
    function: ToolFunction


class FunctionName(Strict):
    """Names a function."""

    name: str


class NamedTool(Strict):
    """Asks for a call of one tool."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """A JSON schema with its name."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, JsonValue] | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaFormat


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatRequest(SharedFields):
    """A conversation that waits for the assistant. A thought counts towards ``max_tokens``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    reasoning_effort: Literal["none", "high"] | None = None
    thinking_token_budget: Annotated[Whole | None, Field(ge=0, lt=2**31)] = None
    max_completion_tokens: Annotated[Whole | None, Field(ge=1, lt=2**31)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole | None, Field(ge=0, le=20)] = None
    tools: Annotated[list[Tool] | None, Field(max_length=512)] = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    functions: None = None
    function_call: None = None
    web_search_options: None = None
    skip_special_tokens: bool | None = None
    """Accepted, not used: thinking, content and calls are told apart by token id."""


class AdapterName(Strict):
    """Names an adapter that is to be dropped."""

    lora_name: Name


class NewAdapter(AdapterName):
    """Names an adapter that is to be loaded, and its folder below the server's folder of adapters."""

    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
