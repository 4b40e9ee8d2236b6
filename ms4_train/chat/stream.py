"""An answer as text while its tokens come: the incremental form of ``parse_answer``.

What the pieces spell together is what ``parse_answer`` finds in all the tokens, however characters are cut into tokens.
Exercise it: ``pytest tests/ms4_train/chat/test_stream.py``.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ms4_train.chat.parse import Answer, AnswerParser, Part, ThinkingState

if TYPE_CHECKING:
    from ms4_train.chat.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """The next characters of the thought."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """The next characters of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call whose name is complete; the first call has index 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next characters of a call's arguments. Its ``ToolCallStart`` came before."""

    index: int
    text: str


Delta = ReasoningDelta | ContentDelta | ToolCallStart | ToolCallArguments


class _Text:
    """Token by token into whole characters; equal to ``ChatTokenizer.decode`` of all the tokens, special ones left out."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Characters that ``token_id`` completes."""
        if 0 <= token_id < self._tokenizer.num_special_tokens:
            return self.flush()  # ``decode`` does not join bytes across a special token
        if not 0 <= token_id < self._tokenizer.vocab_size:
            return self.flush() + "\ufffd"
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """The replacement character for the first bytes of a character that never ended, or nothing."""
        return self._decoder.decode(b"", final=True)


class AnswerStream:
    """Splits one answer into deltas.

    Args:
        tokenizer: the tokenizer it is generated with.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._parser = AnswerParser(tokenizer)
        self._thinking = _Text(tokenizer)
        self._content = _Text(tokenizer)
        self._arguments = _Text(tokenizer)
        self._started = 0  # calls whose name has been given out

    @property
    def answer(self) -> Answer:
        """``parse_answer`` of the tokens so far."""
        return self._parser.answer

    @property
    def part(self) -> Part:
        """Which part a token that is no tag would belong to now."""
        return self._parser.part

    @property
    def thinking_tokens(self) -> int:
        """Tokens of the thought so far, its tags left out."""
        return len(self._parser.thinking)

    @property
    def thinking_state(self) -> ThinkingState:
        """``unterminated`` while the thought is open."""
        return self._parser.state

    def push(self, token_id: int) -> list[Delta]:
        """What becomes certain with ``token_id``: nothing within a character, a name or a tag. No delta has an empty text."""
        calls = len(self._parser.calls)
        part = self._parser.push(token_id)
        if part == "thinking":
            return _texts(ReasoningDelta(self._thinking.push(token_id)))
        if part == "content":
            return _texts(ContentDelta(self._content.push(token_id)))
        if part == "arguments":
            return _texts(ToolCallArguments(calls - 1, self._arguments.push(token_id)))
        if part == "name":
            return []
        if self._parser.part == "arguments":
            return self._start_call(calls - 1)
        has_left_call = calls > 0 and (len(self._parser.calls) > calls or self._parser.part != "name")
        return self._end_call(calls - 1) if has_left_call else []

    def finish(self) -> list[Delta]:
        """What is left when the answer has ended: unfinished characters, and a call without arguments."""
        calls = len(self._parser.calls)
        return [
            *_texts(ReasoningDelta(self._thinking.flush())),
            *_texts(ContentDelta(self._content.flush())),
            *(self._end_call(calls - 1) if calls else []),
        ]

    def _start_call(self, index: int) -> list[Delta]:
        """The name of call ``index``, once."""
        if self._started > index:
            return []
        self._started = index + 1
        return [ToolCallStart(index, self._tokenizer.decode(self._parser.calls[index][0]))]

    def _end_call(self, index: int) -> list[Delta]:
        return [*self._start_call(index), *_texts(ToolCallArguments(index, self._arguments.flush()))]


def _texts(delta: ReasoningDelta | ContentDelta | ToolCallArguments) -> list[Delta]:
    return [delta] if delta.text else []
