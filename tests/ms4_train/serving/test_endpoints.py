"""OpenAI's own client against the server; the engine called directly says what the answers must be."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from openai import OpenAI
from support.served import NAME, Served, tiny_engine
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import parse_answer
from ms4_train.inference import GenerationRequest, SamplingParams, chat_request

USER: list[Any] = [{"role": "user", "content": "Hello there"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "toggle",
        "description": "Switches a light.",
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False},
    },
}
BOTH = [False, True]


def expected(mode: Any = "none", **sampling: Any):
    """The engine's completions for ``USER``."""
    tokenizer = tiny_tokenizer()
    count = sampling.pop("n", 1)
    params = SamplingParams(**{"temperature": 1.0, "max_tokens": 12, **sampling})
    request = chat_request(tokenizer, USER, request_id="x", reasoning_effort=mode, sampling=params, n=count)
    return tiny_engine(deterministic=True).generate([request])


@pytest.mark.parametrize("mode", ["none", "high"])
def test_an_answer_is_the_engines(client: OpenAI, mode: Any) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=NAME, messages=USER, max_tokens=12, seed=5, n=2, logprobs=True, top_logprobs=3, reasoning_effort=mode
    )
    response = raw.parse()
    done = expected(mode, seed=5, n=2, logprobs=3)
    assert raw.headers["x-request-id"] == response.id
    for choice, completion in zip(response.choices, done, strict=True):
        assert choice.message.content == parse_answer(completion.token_ids, tiny_tokenizer()).content
        assert choice.finish_reason == completion.finish_reason
        assert choice.logprobs is not None
        assert completion.logprobs is not None
        given = [token.logprob for token in choice.logprobs.content or []]
        assert given == [entry.logprob for entry in completion.logprobs]  # JSON keeps a double's 17 digits
    assert response.usage is not None
    assert response.usage.completion_tokens == sum(completion.generated_tokens for completion in done)
    assert response.usage.prompt_tokens == done[0].prompt_tokens


def test_a_stream_says_the_same(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": NAME, "messages": USER, "max_tokens": 12, "seed": 5, "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**options)
    texts, likelihoods, reasons, usage = ["", ""], [[], []], [None, None], None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            likelihoods[choice.index] += choice.logprobs.content if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert likelihoods == [choice.logprobs.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_a_thought_has_its_budget(client: OpenAI) -> None:
    think = tiny_tokenizer().ids.think
    response = client.chat.completions.create(
        model=NAME,
        messages=USER,
        max_tokens=12,
        seed=1,
        reasoning_effort="high",
        extra_body={"thinking_token_budget": 4, "guided_regex": "(ab)+", "logit_bias": {str(think): 30}},
    )
    (choice,) = response.choices
    assert choice.model_extra is not None
    assert choice.model_extra["thinking"] == "forced"
    assert response.usage is not None
    assert response.usage.completion_tokens_details is not None
    # A second [THINK] inside the thought is a tag, not a token of it.
    assert 0 <= (response.usage.completion_tokens_details.reasoning_tokens or 0) <= 4
    assert set(choice.message.content or "") <= set("ab")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "toggle"}}], ids=["required", "named"])
@pytest.mark.parametrize("stream", BOTH)
def test_a_call_that_is_asked_for_comes(client: OpenAI, choice: Any, stream: bool) -> None:
    options: dict[str, Any] = {"model": NAME, "messages": USER, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(**options, max_tokens=200, seed=3) as events:
            (answer,) = events.get_final_completion().choices
    else:
        (answer,) = client.chat.completions.create(**options, max_tokens=200, seed=3).choices
    (call,) = answer.message.tool_calls or []
    assert (answer.finish_reason, call.type) == ("tool_calls", "function")
    assert call.function.name == "toggle"
    jsonschema.validate(json.loads(call.function.arguments), TOOL["function"]["parameters"])
    assert len(call.id) == 9


def test_no_call_where_none_is_wanted(client: OpenAI) -> None:
    response = client.chat.completions.create(model=NAME, messages=USER, tools=[TOOL], tool_choice="none", max_tokens=40, seed=3)
    assert response.choices[0].message.tool_calls is None


def test_a_schema_is_followed(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "ok": {"type": "boolean"}}, "required": ["kind", "ok"]}
    schema["additionalProperties"] = False
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    response = client.chat.completions.create(model=NAME, messages=USER, response_format=form, max_tokens=400, seed=2)
    assert response.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(response.choices[0].message.content or ""), schema)


def test_a_choice_is_made(client: OpenAI) -> None:
    extra = {"structured_outputs": {"choice": ["red", "green"]}}
    response = client.chat.completions.create(model=NAME, messages=USER, max_tokens=30, extra_body=extra)
    assert response.choices[0].message.content in ("red", "green")


def test_completions_go_on_with_a_text(client: OpenAI) -> None:
    tokenizer = tiny_tokenizer()
    response = client.completions.create(model=NAME, prompt=["Once", "Twice"], max_tokens=8, temperature=0, n=2, logprobs=1, echo=True)
    requests = [
        GenerationRequest(text, (1, *tokenizer.encode_text(text)), SamplingParams(max_tokens=8, logprobs=1, prompt_logprobs=1))
        for text in ("Once", "Twice")
    ]
    done = tiny_engine(deterministic=True).generate(requests)
    assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
    for choice in response.choices:
        completion = done[choice.index // 2]
        assert choice.text == completion.request_id + tokenizer.decode(completion.token_ids)
        assert choice.logprobs is not None
        assert completion.prompt_logprobs is not None
        assert completion.logprobs is not None
        entries = [*completion.prompt_logprobs, *completion.logprobs]
        assert choice.logprobs.token_logprobs == [None if entry is None else entry.logprob for entry in entries]


def test_completions_stream(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": NAME, "prompt": [60, 70], "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_prompt_logprobs_in_vllms_form(client: OpenAI) -> None:
    response = client.chat.completions.create(model=NAME, messages=USER, max_tokens=2, extra_body={"prompt_logprobs": 1})
    assert response.model_extra is not None
    assert response.usage is not None
    given = response.model_extra["prompt_logprobs"]
    assert (len(given), given[0]) == (response.usage.prompt_tokens, None)
    assert {entry["rank"] for entry in given[1].values()} >= {1}


def test_a_prefix_is_found_again(server: Served, client: OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "The same long beginning of a prompt. " * 8}]
    first, second = (client.chat.completions.create(model=NAME, messages=long, max_tokens=4, seed=1) for _ in range(2))
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= 32
    assert first.choices[0].message.content == second.choices[0].message.content
    server.wait_idle()
