"""Reads one reply of a chat completion, streamed or whole, and decides whether it is an answer.

An answer counts only when the server said why it ended and the stream then ended as the protocol has it; anything less may be half of an
answer, and half an answer looks like a wrong one to a grader.
Exercise it: ``pytest tests/evals/ms4_evals/clients/endpoint/test_replies.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ms4_evals.clients.endpoint.events import Event
from ms4_evals.clients.endpoint.failures import RequestFailure, bad_response, from_error_object
from ms4_evals.clients.servers.kinds import ServerKind
from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import parse_json

MAX_TOKENS_TOLD = 10**9
HIDDEN_TOKENS = 8
"""Tokens that a server may count without sending any text: ends and tags. More of them mean that it swallowed the text."""

_STOP = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}
_LENGTH = {"length", "max_tokens", "model_length"}
_BROKEN_OFF = {"error", "abort", "aborted", "cancelled"}
_TOOL_CALL = {"tool_calls", "tool_call", "function_call"}
_DELTA_TEXTS = ("content", "reasoning", "reasoning_content", "thinking")


@dataclass(frozen=True)
class Usage:
    """Token counts as the server tells them; None where it does not."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    thinking_tokens: int | None = None


@dataclass(frozen=True)
class Reply:
    """A complete answer.

    Attributes:
        finish_reason: ``stop`` or ``length``.
        model: the name that the server gave, empty for none.
        text_chunks: chunks of the stream that held text; None for a whole reply.
        has_twins: two neighbouring chunks of text were equal byte for byte.
    """

    thinking: str
    answer: str
    thinking_is_open: bool
    finish_reason: str
    model: str
    usage: Usage
    text_chunks: int | None = None
    has_twins: bool = False


def read_finish_reason(reason: Any) -> str:
    """``stop`` or ``length``.

    Raises:
        RequestFailure: the answer ended in another way.
    """
    if reason in _STOP:
        return "stop"
    if reason in _LENGTH:
        return "length"
    if reason == "content_filter":
        raise RequestFailure("refused", "the server's content filter withheld the answer", asks_again=False)
    if reason in _TOOL_CALL:
        # Asking again until there is none would be choosing among answers.
        message = "the server made a call of a tool out of the answer, though none was offered: serve without a tool parser"
        raise RequestFailure("bad-response", message, asks_again=False)
    if reason in _BROKEN_OFF:
        raise RequestFailure("server", f"the server broke the answer off (finish_reason {reason})")
    raise bad_response(f"finish_reason is {reason!r:.60}")


def read_usage(value: Any) -> Usage:
    """``usage`` of a reply or of the last chunk; what is no sane number is not told."""
    if not isinstance(value, Mapping):
        return Usage()
    details = value.get("completion_tokens_details")
    # SGLang tells them beside the other counts, the others inside the details.
    thinking = (details if isinstance(details, Mapping) else value).get("reasoning_tokens")
    return Usage(_count(value.get("prompt_tokens")), _count(value.get("completion_tokens")), _count(thinking))


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS_TOLD
    return value if is_count else None


def read_whole(body: bytes, kind: ServerKind) -> Reply:
    """A reply that was not streamed.

    Raises:
        RequestFailure: it is no complete answer.
    """
    reply = _object(body)
    choice = _choice(reply)
    if choice is None:
        raise bad_response("a reply without choices")
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise bad_response("a choice without a message")
    finish_reason = read_finish_reason(choice.get("finish_reason"))
    reader = kind.reader()
    try:
        reader.feed_message(message)
    except ValueError as error:
        raise bad_response(f"a message that cannot be read: {error}") from None
    read = Reply(reader.thinking, reader.answer, reader.thinking_is_open, finish_reason, _model(reply), read_usage(reply.get("usage")))
    _require_text(read)
    return read


class StreamedReply:
    """A reply as it comes: feed every event, then :meth:`finish`.

    Args:
        kind: decides where thinking is and how a stream ends.
    """

    def __init__(self, kind: ServerKind) -> None:
        self._kind = kind
        self._reader = kind.reader()
        self._finish_reason: str | None = None
        self._model = ""
        self._usage: Usage | None = None
        self._last_text_event = b""
        self._has_twins = False
        self.text_chunks = 0
        self.is_done = False

    def feed(self, event: Event) -> None:
        """Take one event.

        Raises:
            RequestFailure: it is garbled, an error, or cannot stand where it stands.
        """
        if self.is_done:
            return
        if event.data.strip() == b"[DONE]":
            self.is_done = True
            return
        chunk = _object(event.data)
        if event.name == "error":
            raise from_error_object(chunk)
        self._check_model(_model(chunk))
        if isinstance(chunk.get("usage"), Mapping):
            self._usage = read_usage(chunk["usage"])
        choice = _choice(chunk)
        if choice is not None:
            self._take_choice(choice, event.data)

    def finish(self) -> Reply:
        """The answer, now that the stream has ended.

        Raises:
            RequestFailure: it is not complete.
        """
        self._check_end()
        read = Reply(
            self._reader.thinking,
            self._reader.answer,
            self._reader.thinking_is_open,
            self._finish_reason or "stop",
            self._model,
            self._usage or Usage(),
            self.text_chunks,
            self._has_twins,
        )
        _require_text(read)
        return read

    def _take_choice(self, choice: Mapping[str, Any], data: bytes) -> None:
        delta = choice.get("delta")
        if delta is not None and not isinstance(delta, Mapping):
            raise bad_response("a chunk whose delta is no object")
        if delta and any(delta.get(name) for name in _DELTA_TEXTS):
            if self._finish_reason is not None:
                raise bad_response("text after the end of the answer")
            self.text_chunks += 1
            self._has_twins = self._has_twins or data == self._last_text_event
            self._last_text_event = data
            try:
                self._reader.feed_delta(delta)
            except ValueError as error:
                raise bad_response(f"a chunk that cannot be read: {error}") from None
        if choice.get("finish_reason"):
            reason = read_finish_reason(choice["finish_reason"])
            if self._finish_reason not in (None, reason):
                raise bad_response(f"an answer that ended twice, by {self._finish_reason} and by {reason}")
            self._finish_reason = reason

    def _check_model(self, name: str) -> None:
        if name and self._model and name != self._model:
            raise bad_response(f"chunks of two models in one answer: {self._model!r:.80} and {name!r:.80}")
        self._model = self._model or name

    def _check_end(self) -> None:
        if self._finish_reason is None:
            raise bad_response("the stream ended before the answer did")
        if self._kind.ends_with_done and not self.is_done and self._usage is None:
            raise bad_response("the stream ended without [DONE]")


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = parse_json(data)
    except UntrustedInputError as error:
        raise bad_response(f"not JSON in UTF-8: {error.message}") from None
    if not isinstance(value, Mapping):
        raise bad_response("JSON that is no object")
    if value.get("error"):
        raise from_error_object(value["error"])
    if value.get("object") == "error":
        raise from_error_object(value)
    return value


def _choice(reply: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one choice; None where there is none, as in a chunk of usage alone."""
    choices = reply.get("choices")
    if not choices:
        return None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping) or choices[0].get("index", 0) != 0:
        raise bad_response("other choices than the one that was asked for")
    return choices[0]


def _model(reply: Mapping[str, Any]) -> str:
    name = reply.get("model")
    if name is None:
        return ""
    if not isinstance(name, str):
        raise bad_response("a model name that is no text")
    return name


def _require_text(reply: Reply) -> None:
    """No text though tokens were generated, none of them as thinking that the server keeps: its parser swallowed the answer."""
    if reply.thinking or reply.answer or reply.finish_reason != "stop" or reply.usage.completion_tokens is None:
        return
    hidden = reply.usage.completion_tokens - (reply.usage.thinking_tokens or 0)
    if hidden > HIDDEN_TOKENS:
        raise bad_response(f"{hidden} tokens were generated, but no text was sent: the server's reasoning parser hides it")
