"""Fields to sampling parameters: defaults are OpenAI's, bounds are the context's, and one field asks for a form at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ms4_train.inference.sampling_params import MAX_SEED, ConstraintSpec, SamplingParams
from ms4_train.serving.chat_fields import ChatRequest
from ms4_train.serving.completion_fields import CompletionRequest
from ms4_train.serving.failures import ApiError
from ms4_train.serving.parameters import check_fields, max_tokens, sampling_params, wanted_form
from ms4_train.serving.settings import ServerSettings

SETTINGS = ServerSettings("m", max_n=4)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields})


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": "x", **fields})


def refused(function, *arguments, **named) -> ApiError:
    with pytest.raises(ApiError) as caught:
        function(*arguments, **named)
    assert caught.value.status == 400
    return caught.value


def test_defaults_are_openais() -> None:
    first, second = sampling_params(chat(), 5), sampling_params(chat(), 5)
    assert first.seed != second.seed
    assert first == SamplingParams(temperature=1.0, max_tokens=5, seed=first.seed)


def test_every_field_arrives() -> None:
    given = sampling_params(
        chat(
            temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.5, seed=7,
            logit_bias={"40": 5}, stop="x", stop_token_ids=[3], include_stop_str_in_output=True, min_tokens=2, ignore_eos=True,
            logprobs=True, top_logprobs=3, prompt_logprobs=2, thinking_token_budget=9,
        ),
        8,
    )  # fmt: skip
    assert given == SamplingParams(
        temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.5, seed=7,
        logit_bias=((40, 5.0),), stop=("x",), stop_token_ids=(3,), include_stop=True, min_tokens=2, ignore_eos=True, logprobs=3,
        prompt_logprobs=2, thinking_budget=9, max_tokens=8,
    )  # fmt: skip


def test_small_translations() -> None:
    assert sampling_params(chat(top_k=-1), 5).top_k == 0
    assert sampling_params(chat(seed=-1), 5).seed == MAX_SEED
    assert sampling_params(chat(logprobs=True), 5).logprobs == 0
    assert sampling_params(chat(logprobs=False), 5).logprobs is None
    assert sampling_params(completion(logprobs=2, echo=True), 5).prompt_logprobs == 2
    assert sampling_params(completion(logprobs=2), 5).prompt_logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (chat(n=5), "n"),
        (chat(stream_options={"include_usage": True}), "stream_options"),
        (chat(top_logprobs=2), "top_logprobs"),
        (chat(max_tokens=3, max_completion_tokens=4), "max_completion_tokens"),
        (completion(best_of=2), "best_of"),
        (completion(echo=True, stream=True), "echo"),
        (chat(structured_outputs={}), "structured_outputs"),
    ],
)
def test_fields_that_do_not_go_together(fields: ChatRequest | CompletionRequest, param: str) -> None:
    assert refused(check_fields, fields, SETTINGS).param == param


def test_an_answer_gets_what_fits() -> None:
    assert max_tokens(chat(), 30, 100, SETTINGS) == 70
    assert max_tokens(chat(max_tokens=70), 30, 100, SETTINGS) == 70
    assert max_tokens(chat(max_completion_tokens=5, max_tokens=5), 30, 100, SETTINGS) == 5
    assert max_tokens(chat(), 30, 100, ServerSettings("m", max_tokens=20)) == 20


@pytest.mark.parametrize(
    ("fields", "prompt", "param"),
    [
        (chat(max_tokens=71), 30, "max_tokens"),
        (chat(max_completion_tokens=71), 30, "max_completion_tokens"),
        (chat(min_tokens=71), 30, "min_tokens"),
        (chat(min_tokens=6, max_tokens=5), 30, "min_tokens"),
        (chat(), 100, "messages"),
        (completion(), 100, "prompt"),
    ],
)
def test_what_does_not_fit_is_refused(fields: ChatRequest | CompletionRequest, prompt: int, param: str) -> None:
    assert refused(max_tokens, fields, prompt, 100, SETTINGS).param == param


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, "json_schema", json.dumps(SCHEMA)),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", json.dumps(SCHEMA)),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]'),
        ({"structured_outputs": {"grammar": "start: x"}}, "lark", "start: x"),
        ({"structured_outputs": {"json_object": True}}, "json_object", ""),
        ({"guided_json": '{"type": "object"}'}, "json_schema", '{"type": "object"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a"]}, "choice", '["a"]'),
        ({"guided_grammar": "start: x"}, "lark", "start: x"),
    ],
    ids=str,
)
def test_forms(fields: dict[str, Any], kind: Any, text: str) -> None:
    assert wanted_form(chat(**fields), may_think=True) == ConstraintSpec(kind, text, after_thinking=True)


def test_text_is_no_form() -> None:
    assert wanted_form(chat(response_format={"type": "text"}), may_think=False) is None


def test_the_form_waits_for_a_thought_in_mode_high_only() -> None:
    forms = [sampling_params(chat(guided_regex="a", reasoning_effort=effort), 5).constraint for effort in ("high", "none")]
    assert [form is not None and form.after_thinking for form in forms] == [True, False]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
    ],
    ids=str,
)
def test_two_forms(fields: dict[str, Any], param: str) -> None:
    assert refused(wanted_form, chat(**fields), may_think=False).param == param
