"""Tokens to chat responses. OpenAI's own types and its own joining of chunks are the oracles."""

from __future__ import annotations

import random
from typing import Any

import pytest
from openai import omit
from openai.lib.streaming.chat._completions import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from support.tokenizers import tiny_tokenizer

from ms4_train.errors import EngineError
from ms4_train.inference.request import Completion, Event, FinishEvent, TokenEvent, TokenLogprobs
from ms4_train.serving.answer_fields import ChatCompletion as OurForm
from ms4_train.serving.chat_answers import ChatAnswers, new_call_id
from ms4_train.serving.chat_fields import ChatRequest
from ms4_train.serving.failures import ApiError

TOKENIZER = tiny_tokenizer()
IDS = TOKENIZER.ids
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "m"}


def text(words: str) -> list[int]:
    return TOKENIZER.encode_text(words)


def call(name: str, arguments: str) -> list[int]:
    return [IDS.tool_calls, *text(name), IDS.args, *text(arguments)]


THOUGHT = [IDS.think, *text("let me see, é😀"), IDS.end_think]
TWO_CALLS = [*call("add", '{"a": 1}'), *call("show", '{"é": "😀"}')]


def answers(**fields: Any) -> ChatAnswers:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return ChatAnswers(ChatRequest.model_validate(body), TOKENIZER, HEAD)


def completion(token_ids: list[int], index: int = 0, reason: Any = "stop", *, logprobs: bool = False, **values: Any) -> Completion:
    entries = [TokenLogprobs(token_id, -0.5, 1, ((token_id, -0.5),)) for token_id in [*token_ids, IDS.eos]] if logprobs else None
    return Completion("r", token_ids, reason, None, 7, len(token_ids) + 1, 0.1, index, logprobs=entries, **values)


def events_of(done: Completion, seed: int) -> list[Event]:
    """The completion's tokens in random portions, then its end; the end token's logprobs come with the end."""
    random_numbers, events, start = random.Random(seed), [], 0
    while start < len(done.token_ids):
        stop = min(start + random_numbers.randint(1, 4), len(done.token_ids))
        logprobs = tuple(done.logprobs[start:stop]) if done.logprobs is not None else ()
        events.append(TokenEvent("r", done.index, tuple(done.token_ids[start:stop]), logprobs))
        start = stop
    return [*events, FinishEvent(done)]


def streamed(making: ChatAnswers, events: list[Event], seed: int) -> list[dict[str, Any]]:
    """Chunks of events that are taken in random batches."""
    random_numbers, chunks = random.Random(seed), []
    while events:
        count = random_numbers.randint(1, 5)
        chunks += making.chunks(events[:count])
        events = events[count:]
    return chunks


def joined(chunks: list[dict[str, Any]]) -> ChatCompletion:
    """By OpenAI's client."""
    state = ChatCompletionStreamState(input_tools=omit, response_format=omit)
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    return state.current_completion_snapshot  # pyright: ignore[reportReturnType]


CASES = {
    "text": text("Hello é😀 world"),
    "nothing": [],
    "thought": [*THOUGHT, *text("Done.")],
    "open thought": [IDS.think, *text("and then")],
    "calls": TWO_CALLS,
    "all": [*THOUGHT, *text("Let me compute."), *TWO_CALLS],
    "half a character": text("a😀")[:-1],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_chunks_join_to_the_whole_response(name: str, seed: int) -> None:
    done = completion(CASES[name], logprobs=True)
    whole = ChatCompletion.model_validate(answers(logprobs=True).response([done])).choices[0]
    parts = joined(streamed(answers(logprobs=True, stream=True), events_of(done, seed), seed)).choices[0]
    assert (parts.message.content or "") == (whole.message.content or "")
    extra, expected = parts.message.model_extra or {}, whole.message.model_extra or {}
    assert extra.get("reasoning_content", "") == expected.get("reasoning_content", "")
    assert extra.get("reasoning", "") == expected.get("reasoning", "")
    told = [(entry.function.name, entry.function.arguments) for entry in parts.message.tool_calls or []]  # pyright: ignore[reportAttributeAccessIssue]
    assert told == [(entry.function.name, entry.function.arguments) for entry in whole.message.tool_calls or []]  # pyright: ignore[reportAttributeAccessIssue]
    assert parts.finish_reason == whole.finish_reason
    assert parts.logprobs == whole.logprobs
    assert parts.logprobs is not None
    assert len(parts.logprobs.content or []) == done.generated_tokens


def test_a_response_with_everything() -> None:
    made = answers().response([completion(CASES["all"], thinking="closed")])
    OurForm.model_validate(made)
    (choice,) = ChatCompletion.model_validate(made).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me compute."
    assert choice.message.model_extra is not None
    assert choice.message.model_extra["reasoning_content"] == "let me see, é😀"
    calls = choice.message.tool_calls or []
    assert [(each.function.name, each.function.arguments) for each in calls] == [("add", '{"a": 1}'), ("show", '{"é": "😀"}')]  # pyright: ignore[reportAttributeAccessIssue]
    assert len({each.id for each in calls}) == 2
    assert all(len(each.id) == 9 and each.id.isalnum() for each in calls)
    assert made["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(THOUGHT) - 2
    assert (made["choices"][0]["thinking"], made["choices"][0]["stop_reason"]) == ("closed", None)


def test_an_answer_with_calls_alone_has_no_content() -> None:
    message = answers().response([completion(TWO_CALLS)])["choices"][0]["message"]
    assert message["content"] is None
    assert "reasoning_content" not in message


def test_a_call_that_was_cut_off_ended_by_length() -> None:
    assert answers().response([completion(TWO_CALLS[:-1], reason="length")])["choices"][0]["finish_reason"] == "length"


def test_without_parallel_calls_the_first_counts() -> None:
    fields = {"parallel_tool_calls": False}
    whole = answers(**fields).response([completion(TWO_CALLS)])["choices"][0]["message"]["tool_calls"]
    assert [each["function"]["name"] for each in whole] == ["add"]
    parts = joined(streamed(answers(**fields), events_of(completion(TWO_CALLS), 0), 0)).choices[0].message.tool_calls or []
    assert [(each.function.name, each.function.arguments) for each in parts] == [("add", '{"a": 1}')]  # pyright: ignore[reportAttributeAccessIssue]


def test_several_answers_in_one_stream() -> None:
    both = [completion(text("one"), 0), completion([*THOUGHT, *text("two")], 1)]
    mixed = [event for pair in zip(events_of(both[0], 3), events_of(both[1], 4), strict=False) for event in pair]
    mixed += [event for event in [*events_of(both[0], 3), *events_of(both[1], 4)] if event not in mixed]
    making = answers(n=2, stream=True)
    chunks = streamed(making, mixed, 0)
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks].count("assistant") == 2
    assert [choice.message.content for choice in joined(chunks).choices] == ["one", "two"]
    counted = making.usage_chunk()
    assert (counted["choices"], counted["usage"]["completion_tokens"]) == ([], sum(each.generated_tokens for each in both))
    assert counted["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(THOUGHT) - 2


def test_prompt_logprobs_come_once() -> None:
    given = completion(text("x"), prompt_logprobs=[None, TokenLogprobs(50, -1.0, 1, ())])
    assert len(answers().response([given])["prompt_logprobs"]) == 2
    chunks = streamed(answers(), events_of(given, 0), 0)
    assert [("prompt_logprobs" in chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize("reason", ["error", "cancelled"])
def test_what_failed_is_no_answer(reason: str) -> None:
    failed = completion([], reason=reason, error=EngineError("x") if reason == "error" else None)
    for tell in (lambda: answers().response([failed]), lambda: answers().chunks([FinishEvent(failed)])):
        with pytest.raises(ApiError) as caught:
            tell()
        assert caught.value.status == 503


def test_call_ids_differ() -> None:
    assert len({new_call_id() for _ in range(1000)}) == 1000
