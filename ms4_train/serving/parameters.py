"""From the fields of a request to the engine's sampling parameters.

Exercise it: ``pytest tests/ms4_train/serving/test_parameters.py``.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from ms4_train.inference.sampling_params import MAX_SEED, ConstraintSpec, SamplingParams
from ms4_train.serving.chat_fields import ChatRequest, JsonObjectFormat, JsonSchemaFormat, ResponseFormat
from ms4_train.serving.completion_fields import CompletionRequest
from ms4_train.serving.failures import ApiError, bad_request
from ms4_train.serving.fields import SharedFields
from ms4_train.serving.settings import ServerSettings

DEFAULT_COMPLETION_TOKENS = 16
"""Of /v1/completions where max_tokens is left out, as OpenAI and vLLM have it; null asks for what fits."""


def check_fields(fields: ChatRequest | CompletionRequest, settings: ServerSettings) -> None:
    """Refuse fields that do not go together, before any work is done.

    Raises:
        ApiError: 400.
    """
    if fields.n is not None and fields.n > settings.max_n:
        raise bad_request(f"n is {fields.n}; at most {settings.max_n} answers are given.", "n", "too_many_answers")
    if fields.stream_options is not None and not fields.stream:
        raise bad_request("stream_options needs stream.", "stream_options")
    if isinstance(fields, ChatRequest):
        if fields.top_logprobs and not fields.logprobs:
            raise bad_request("top_logprobs needs logprobs.", "top_logprobs")
        both = {fields.max_tokens, fields.max_completion_tokens} - {None}
        if len(both) > 1:
            raise bad_request("max_tokens and max_completion_tokens differ.", "max_completion_tokens")
    else:
        if fields.best_of is not None and fields.best_of != (fields.n or 1):
            raise bad_request("best_of must equal n; all answers are given.", "best_of")
        if fields.echo and fields.stream:
            raise bad_request("echo does not go with stream.", "echo")
    if fields.structured_outputs is not None and form_field(fields) is None:
        raise bad_request("structured_outputs names no form.", "structured_outputs")


def max_tokens(fields: ChatRequest | CompletionRequest, prompt_tokens: int, max_context: int, settings: ServerSettings) -> int:
    """Most tokens of an answer: what was asked for, or what fits.

    Raises:
        ApiError: 400: prompt or answer do not fit.
    """
    is_chat = isinstance(fields, ChatRequest)
    most = max_context - 1 if settings.max_prompt_tokens is None else min(settings.max_prompt_tokens, max_context - 1)
    if prompt_tokens > most:
        raise prompt_too_long(f"{prompt_tokens} tokens", most, is_chat=is_chat)
    limit = max_context - prompt_tokens if settings.max_tokens is None else min(settings.max_tokens, max_context - prompt_tokens)
    asked, param = fields.max_tokens, "max_tokens"
    if not isinstance(fields, ChatRequest) and "max_tokens" not in fields.model_fields_set:
        limit = min(limit, DEFAULT_COMPLETION_TOKENS)
    if isinstance(fields, ChatRequest) and fields.max_completion_tokens is not None:
        asked, param = fields.max_completion_tokens, "max_completion_tokens"
    if asked is not None and asked > limit:
        raise bad_request(
            f"{asked} tokens are more than the {limit} that a prompt of {prompt_tokens} leaves here.", param, "context_length_exceeded"
        )
    if fields.min_tokens is not None and fields.min_tokens > (asked or limit):
        raise bad_request(f"min_tokens is above the {asked or limit} that the answer may have.", "min_tokens")
    return asked or limit


def prompt_too_long(size: str, most: int, *, is_chat: bool) -> ApiError:
    """The error of a prompt beyond the context."""
    return bad_request(f"The prompt has {size}; at most {most} tokens fit.", "messages" if is_chat else "prompt", "context_length_exceeded")


def sampling_params(fields: ChatRequest | CompletionRequest, most: int) -> SamplingParams:
    """How the tokens are chosen; ``most`` from ``max_tokens``. Without a seed each request gets one of its own.

    Raises:
        ApiError: 400: two forms at once, or one that is malformed.
        EngineError: a value that only the engine refuses.
    """
    seed = secrets.randbelow(MAX_SEED + 1) if fields.seed is None else fields.seed & MAX_SEED
    stop = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    return SamplingParams(
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        seed=seed,
        max_tokens=most,
        stop=stop,
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        top_k=max(fields.top_k or 0, 0),
        min_p=fields.min_p or 0.0,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        repetition_penalty=1.0 if fields.repetition_penalty is None else fields.repetition_penalty,
        logit_bias=tuple((int(token), bias) for token, bias in (fields.logit_bias or {}).items()),
        min_tokens=fields.min_tokens or 0,
        ignore_eos=bool(fields.ignore_eos),
        include_stop=bool(fields.include_stop_str_in_output),
        logprobs=_logprobs(fields),
        prompt_logprobs=_prompt_logprobs(fields),
        thinking_budget=fields.thinking_token_budget if isinstance(fields, ChatRequest) else None,
        constraint=wanted_form(fields, may_think=isinstance(fields, ChatRequest) and fields.reasoning_effort == "high"),
    )


def _logprobs(fields: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(fields, CompletionRequest):
        return fields.logprobs
    return (fields.top_logprobs or 0) if fields.logprobs else None


def _prompt_logprobs(fields: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(fields, CompletionRequest) and fields.echo and fields.logprobs is not None:
        return max(fields.logprobs, fields.prompt_logprobs or 0)
    return fields.prompt_logprobs


def wanted_form(fields: ChatRequest | CompletionRequest, *, may_think: bool) -> ConstraintSpec | None:
    """The form that an answer must have, from whichever field asks for one.

    Raises:
        ApiError: 400: two fields ask, or the form is empty.
    """
    found = _forms(fields)
    if len(found) > 1:
        raise bad_request(f"{found[0][0]} and {found[1][0]} both ask for a form.", found[1][0])
    if not found:
        return None
    _, kind, text = found[0]
    return ConstraintSpec(kind, text, after_thinking=may_think)


def form_field(fields: ChatRequest | CompletionRequest) -> str | None:
    """The field that asks for a form, if one does."""
    return next((key for key, _, _ in _forms(fields)), None)


Form = tuple[str, Any, str]
"""The field, the kind and the text of a form."""


def _forms(fields: ChatRequest | CompletionRequest) -> list[Form]:
    return [form for form in (_response_format(fields.response_format), *_guided(fields)) if form is not None]


def _response_format(wanted: ResponseFormat | None) -> Form | None:
    if isinstance(wanted, JsonObjectFormat):
        return ("response_format", "json_object", "")
    if isinstance(wanted, JsonSchemaFormat):
        schema = wanted.json_schema.schema_
        return ("response_format", "json_object", "") if schema is None else ("response_format", "json_schema", json.dumps(schema))
    return None


def _guided(fields: SharedFields) -> list[Form | None]:
    forms = [
        _schema("guided_json", fields.guided_json),
        _text("guided_regex", "regex", fields.guided_regex),
        _choice("guided_choice", fields.guided_choice),
        _text("guided_grammar", "lark", fields.guided_grammar),
    ]
    wanted = fields.structured_outputs
    if wanted is None:
        return forms
    key = "structured_outputs"
    inside = [
        _schema(f"{key}.json", wanted.json_),
        _text(f"{key}.regex", "regex", wanted.regex),
        _choice(f"{key}.choice", wanted.choice),
        _text(f"{key}.grammar", "lark", wanted.grammar),
        (f"{key}.json_object", "json_object", "") if wanted.json_object else None,
    ]
    return [*forms, *inside]


def _schema(key: str, schema: dict[str, Any] | str | None) -> Form | None:
    if schema is None:
        return None
    return (key, "json_schema", schema if isinstance(schema, str) else json.dumps(schema))


def _text(key: str, kind: str, text: str | None) -> Form | None:
    return None if text is None else (key, kind, text)


def _choice(key: str, choices: list[str] | None) -> Form | None:
    return None if choices is None else (key, "choice", json.dumps(choices))
