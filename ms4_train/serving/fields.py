"""The fields that both kinds of requests share, with their exact types and bounds.

Beside OpenAI's fields there are vLLM's for what the engine has. Fields of OpenAI that change nothing about an answer are accepted and not
used (``UNUSED``); everything else is refused by name. Null means a field's default.
Exercise it: ``pytest tests/ms4_train/serving/test_fields.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

MAX_TEXT = 1 << 24
UNUSED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction")


def _whole(value: Any) -> Any:
    """JSON knows one kind of number, so 1.0 is the integer 1."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


Whole = Annotated[int, BeforeValidator(_whole)]
TokenId = Annotated[Whole, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]


class Strict(BaseModel):
    """An object without unknown fields, whose values are of the stated types, not only convertible to them."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(Strict):
    """vLLM's way to ask for a form; exactly one field is set."""

    json_: Annotated[dict[str, JsonValue] | str | None, Field(alias="json")] = None
    regex: Annotated[str | None, Field(min_length=1, max_length=100_000)] = None
    choice: Annotated[list[StopText] | None, Field(min_length=1, max_length=1000)] = None
    grammar: Annotated[str | None, Field(min_length=1, max_length=100_000)] = None
    json_object: bool | None = None


class SharedFields(Strict):
    """Fields of chat completions and of completions."""

    model: Name
    n: Annotated[Whole | None, Field(ge=1, le=1024)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[Whole | None, Field(ge=-1, lt=2**31)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    repetition_penalty: Annotated[float | None, Field(ge=0.01, le=10)] = None
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None, Field(max_length=4096)
    ] = None
    seed: Annotated[Whole | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId] | None, Field(max_length=64)] = None
    include_stop_str_in_output: bool | None = None
    max_tokens: Annotated[Whole | None, Field(ge=1, lt=2**31)] = None
    min_tokens: Annotated[Whole | None, Field(ge=0, lt=2**31)] = None
    ignore_eos: bool | None = None
    prompt_logprobs: Annotated[Whole | None, Field(ge=0, le=20)] = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, JsonValue] | str | None = None
    guided_regex: Annotated[str | None, Field(min_length=1, max_length=100_000)] = None
    guided_choice: Annotated[list[StopText] | None, Field(min_length=1, max_length=1000)] = None
    guided_grammar: Annotated[str | None, Field(min_length=1, max_length=100_000)] = None
    user: str | None = None
    metadata: dict[str, JsonValue] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prediction: dict[str, JsonValue] | None = None
