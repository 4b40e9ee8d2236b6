"""From the engine's events to OpenAI's completions: whole, or chunk by chunk.

Choices are counted over all prompts: those of the first prompt come first. Exercise it:
``pytest tests/ms4_train/serving/test_completion_answers.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ms4_train.chat import ChatTokenizer
from ms4_train.inference.detokenize import TextDecoder
from ms4_train.inference.request import Completion, Event, GenerationRequest, TokenEvent, TokenLogprobs
from ms4_train.serving.completion_fields import CompletionRequest
from ms4_train.serving.logprobs import completion_logprobs, prompt_logprobs
from ms4_train.serving.usage import check_finished, usage


class CompletionAnswers:
    """The answers to one completion request.

    Args:
        fields: the request.
        requests: what the engine answers, one for each prompt.
        tokenizer: of the model.
        head: ``id``, ``created`` and ``model`` of the response.
    """

    def __init__(
        self, fields: CompletionRequest, requests: Sequence[GenerationRequest], tokenizer: ChatTokenizer, head: dict[str, Any]
    ) -> None:
        self._fields = fields
        self._requests = {request.request_id: request for request in requests}
        self._offsets = {request.request_id: number * request.n for number, request in enumerate(requests)}
        self._tokenizer = tokenizer
        self._head = {**head, "object": "text_completion"}
        self._keep_special = fields.skip_special_tokens is False
        self._choices: dict[int, _StreamedText] = {}
        self._finished: list[Completion] = []

    def response(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole response.

        Raises:
            ApiError: 503: the engine could not finish one of the answers.
        """
        for completion in completions:
            check_finished(completion)
        return {**self._head, "choices": [self._choice(completion) for completion in completions], "usage": usage(completions, None)}

    def _choice(self, completion: Completion) -> dict[str, Any]:
        before = self._echoed(completion.request_id)
        choice: dict[str, Any] = {
            "index": self._offsets[completion.request_id] + completion.index,
            "text": before + self._tokenizer.decode(completion.token_ids, keep_special=self._keep_special),
            "logprobs": None,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if completion.logprobs is not None:
            entries: list[TokenLogprobs | None] = list(completion.logprobs)
            ids, start = [entry.token_id for entry in completion.logprobs], len(before)
            if self._fields.echo:
                entries = [*(completion.prompt_logprobs or []), *entries]
                ids, start = [*self._requests[completion.request_id].prompt_ids, *ids], 0
            choice["logprobs"] = completion_logprobs(entries, ids, start, self._tokenizer, keep_special=self._keep_special)
        if self._fields.prompt_logprobs is not None and completion.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(completion.prompt_logprobs, self._tokenizer)
        return choice

    def _echoed(self, request_id: str) -> str:
        return self._tokenizer.decode(self._requests[request_id].prompt_ids, keep_special=self._keep_special) if self._fields.echo else ""

    def chunks(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """The chunks that tell of ``events``.

        Raises:
            ApiError: 503: the engine could not finish an answer.
        """
        found: list[dict[str, Any]] = []
        touched: dict[int, _StreamedText] = {}
        for event in events:
            owner = event if isinstance(event, TokenEvent) else event.completion
            index = self._offsets[owner.request_id] + owner.index
            choice = touched[index] = self._choices.setdefault(index, _StreamedText(self._tokenizer, keep_special=self._keep_special))
            if isinstance(event, TokenEvent):
                choice.push(event)
            else:
                check_finished(event.completion)
                choice.finish(event.completion)
                self._finished.append(event.completion)
        for index, choice in touched.items():
            told = choice.take(self._fields.logprobs is not None)
            if told is None:
                continue
            given = choice.end.prompt_logprobs if choice.end is not None and self._fields.prompt_logprobs is not None else None
            if given is not None:
                told["prompt_logprobs"] = prompt_logprobs(given, self._tokenizer)
            found.append({**self._head, "choices": [{"index": index, **told}]})
        return found

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream that counts its tokens."""
        return {**self._head, "choices": [], "usage": usage(self._finished, None)}


class _StreamedText:
    """One answer on its way."""

    def __init__(self, tokenizer: ChatTokenizer, *, keep_special: bool) -> None:
        self._keep_special = keep_special
        self._tokenizer = tokenizer
        self._decoder = TextDecoder(tokenizer, keep_special=keep_special)
        self._text = ""
        self._told = 0
        self._logprobs: list[TokenLogprobs] = []
        self._logprobs_seen = 0
        self.end: Completion | None = None

    def push(self, event: TokenEvent) -> None:
        """Take in the next tokens."""
        self._text += "".join([self._decoder.push(token_id) for token_id in event.token_ids])
        self._logprobs += event.logprobs
        self._logprobs_seen += len(event.logprobs)

    def finish(self, completion: Completion) -> None:
        """Take in the end."""
        self._text += self._decoder.flush()
        self._logprobs += (completion.logprobs or [])[self._logprobs_seen :]
        self.end = completion

    def take(self, wants_logprobs: bool) -> dict[str, Any] | None:
        """What has not been told yet; None where it is nothing."""
        if not self._text and self.end is None:
            return None
        text, self._text = self._text, ""
        entries, self._logprobs = self._logprobs, []
        ids = [entry.token_id for entry in entries]
        told: dict[str, Any] = {
            "text": text,
            "logprobs": self._spelled(entries, ids) if wants_logprobs else None,
            "finish_reason": None if self.end is None else self.end.finish_reason,
            "stop_reason": None if self.end is None else self.end.stop_reason,
        }
        self._told += len(text)
        return told

    def _spelled(self, entries: list[TokenLogprobs], ids: list[int]) -> dict[str, Any]:
        return completion_logprobs(entries, ids, self._told, self._tokenizer, keep_special=self._keep_special)
