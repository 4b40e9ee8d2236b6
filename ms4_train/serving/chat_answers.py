"""From the engine's events to OpenAI's chat completions: whole, or chunk by chunk.

Thinking, content and tool calls are told apart by token id. Thinking stands in ``reasoning_content``, and again in ``reasoning`` as newer
clients have it. Beside OpenAI's fields a choice says ``stop_reason`` (vLLM's) and ``thinking``: ``none``, ``closed``, ``forced`` (by its
budget), or ``open``: the answer ended inside its thought. Exercise it: ``pytest tests/ms4_train/serving/test_chat_answers.py``.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Any

from ms4_train.chat import Answer, ChatTokenizer, parse_answer
from ms4_train.chat.stream import AnswerStream, ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallStart
from ms4_train.inference.request import Completion, Event, FinishEvent, TokenEvent, TokenLogprobs
from ms4_train.serving.chat_fields import ChatRequest
from ms4_train.serving.logprobs import chat_logprobs, prompt_logprobs
from ms4_train.serving.usage import check_finished, usage

_LETTERS = string.ascii_letters + string.digits


class ChatAnswers:
    """The answers to one chat request.

    Args:
        fields: the request.
        tokenizer: of the model.
        head: ``id``, ``created`` and ``model`` of the response.
    """

    def __init__(self, fields: ChatRequest, tokenizer: ChatTokenizer, head: dict[str, Any]) -> None:
        self._fields = fields
        self._tokenizer = tokenizer
        self._head = head
        self._choices: dict[int, _StreamedChoice] = {}
        self._finished: list[Completion] = []

    def response(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole response.

        Raises:
            ApiError: 503: the engine could not finish one of the answers.
        """
        for completion in completions:
            check_finished(completion)
        answers = [parse_answer(completion.token_ids, self._tokenizer) for completion in completions]
        found = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(completion, answer) for completion, answer in zip(completions, answers, strict=True)],
            "usage": usage(completions, sum(answer.thinking_tokens for answer in answers)),
        }
        given = completions[0].prompt_logprobs
        return found if given is None else found | {"prompt_logprobs": prompt_logprobs(given, self._tokenizer)}

    def _choice(self, completion: Completion, answer: Answer) -> dict[str, Any]:
        calls = answer.tool_calls[: self._most_calls]
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not answer.content else answer.content}
        message["refusal"] = None
        if answer.thinking_state != "none":
            message |= {"reasoning_content": answer.thinking, "reasoning": answer.thinking}
        if calls:
            message["tool_calls"] = [
                {"id": new_call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls
            ]
        return {
            "index": completion.index,
            "message": message,
            "logprobs": None if completion.logprobs is None else chat_logprobs(completion.logprobs, self._tokenizer),
            **_ending(completion, has_calls=bool(calls)),
        }

    @property
    def _most_calls(self) -> int | None:
        # The model is free to call twice where nothing constrains it, so that what goes beyond is left out here.
        return 1 if self._fields.parallel_tool_calls is False else None

    def chunks(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """The chunks that tell of ``events``; what came of one choice at once is told at once.

        Raises:
            ApiError: 503: the engine could not finish an answer.
        """
        found: list[dict[str, Any]] = []
        for event in events:
            index = event.index if isinstance(event, TokenEvent) else event.completion.index
            if index not in self._choices:
                self._choices[index] = _StreamedChoice(self._tokenizer, self._most_calls, wants_logprobs=bool(self._fields.logprobs))
                found.append(self._chunk(index, {"role": "assistant", "content": ""}))
            if isinstance(event, TokenEvent):
                self._choices[index].push(event)
        for index in dict.fromkeys(event.index for event in events if isinstance(event, TokenEvent)):
            found += [self._chunk(index, delta, logprobs) for delta, logprobs in self._choices[index].take()]
        for event in events:
            if isinstance(event, FinishEvent):
                found += self._finish(event.completion)
        return found

    def _finish(self, completion: Completion) -> list[dict[str, Any]]:
        check_finished(completion)
        self._finished.append(completion)
        choice = self._choices[completion.index]
        choice.finish(completion)
        chunks = [self._chunk(completion.index, delta, logprobs) for delta, logprobs in choice.take()]
        last = self._chunk(completion.index, {}, choice.take_logprobs())
        last["choices"][0] |= _ending(completion, has_calls=bool(choice.call_count))
        if completion.prompt_logprobs is not None and completion.index == 0:
            last["prompt_logprobs"] = prompt_logprobs(completion.prompt_logprobs, self._tokenizer)
        return [*chunks, last]

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream that counts its tokens."""
        reasoning = sum(choice.thinking_tokens for choice in self._choices.values())
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(self._finished, reasoning)}

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


class _StreamedChoice:
    """One answer on its way: what its tokens have said and has not been taken yet."""

    def __init__(self, tokenizer: ChatTokenizer, most_calls: int | None, *, wants_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._stream = AnswerStream(tokenizer)
        self._most_calls = most_calls
        self._wants_logprobs = wants_logprobs
        self._deltas: list[Delta] = []
        self._logprobs: list[TokenLogprobs] = []
        self._logprobs_seen = 0
        self.call_count = 0

    @property
    def thinking_tokens(self) -> int:
        """Inside the thought."""
        return self._stream.thinking_tokens

    def push(self, event: TokenEvent) -> None:
        """Take in the next tokens."""
        self._logprobs += event.logprobs
        self._logprobs_seen += len(event.logprobs)
        for token_id in event.token_ids:
            self._deltas += self._stream.push(token_id)

    def finish(self, completion: Completion) -> None:
        """Take in the end."""
        self._deltas += self._stream.finish()
        self._logprobs += (completion.logprobs or [])[self._logprobs_seen :]

    def take(self) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
        """The deltas to tell, neighbours of one kind joined; the first has the logprobs of them all."""
        found: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
        for delta in _joined(self._deltas):
            told = self._told(delta)
            if told is not None:
                found.append((told, self.take_logprobs()))
        self._deltas = []
        return found

    def take_logprobs(self) -> dict[str, Any] | None:
        """Of the tokens since they were last taken; None where there are none."""
        entries, self._logprobs = self._logprobs, []
        return chat_logprobs(entries, self._tokenizer) if entries and self._wants_logprobs else None

    def _told(self, delta: Delta) -> dict[str, Any] | None:
        if isinstance(delta, ReasoningDelta):
            return {"reasoning_content": delta.text, "reasoning": delta.text}
        if isinstance(delta, ContentDelta):
            return {"content": delta.text}
        if self._most_calls is not None and delta.index >= self._most_calls:
            return None
        if isinstance(delta, ToolCallStart):
            self.call_count += 1
            function = {"name": delta.name, "arguments": ""}
            return {"tool_calls": [{"index": delta.index, "id": new_call_id(), "type": "function", "function": function}]}
        return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}


def new_call_id() -> str:
    """An id for a tool call, as Mistral's format has them: 9 letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def _joined(deltas: Sequence[Delta]) -> list[Delta]:
    found: list[Delta] = []
    for delta in deltas:
        last = found[-1] if found else None
        if isinstance(delta, ReasoningDelta) and isinstance(last, ReasoningDelta):
            found[-1] = ReasoningDelta(last.text + delta.text)
        elif isinstance(delta, ContentDelta) and isinstance(last, ContentDelta):
            found[-1] = ContentDelta(last.text + delta.text)
        elif isinstance(delta, ToolCallArguments) and isinstance(last, ToolCallArguments) and last.index == delta.index:
            found[-1] = ToolCallArguments(delta.index, last.text + delta.text)
        else:
            found.append(delta)
    return found


def _ending(completion: Completion, *, has_calls: bool) -> dict[str, Any]:
    reason = "tool_calls" if has_calls and completion.finish_reason == "stop" else completion.finish_reason
    return {"finish_reason": reason, "stop_reason": completion.stop_reason, "thinking": completion.thinking}
