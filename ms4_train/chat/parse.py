"""Parses generated tokens back into an answer: thinking, text and tool calls, told apart by token id.

Ids decide, never text: an answer that spells ``[THINK]`` in letters is an answer. Malformed output is data here, not an error, since a
model may write anything: an unterminated thought is reported as such, a stray closing tag is dropped, and ``[TOOL_CALLS]`` ends a thought,
as vLLM's parser has it (spec section 4). ``ms4_train.chat.stream`` gives the parts as text while they come.
Exercise it: ``pytest tests/ms4_train/chat/test_parse.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ms4_train.chat.types import ToolCall

if TYPE_CHECKING:
    from ms4_train.chat.tokenizer import ChatTokenizer

ThinkingState = Literal["none", "closed", "unterminated"]
Part = Literal["thinking", "content", "name", "arguments"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote. Token counts leave out the tags themselves."""

    thinking: str
    content: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    thinking_tokens: int = 0
    content_tokens: int = 0
    tool_call_tokens: int = 0
    thinking_state: ThinkingState = "none"
    """``unterminated``: the output ended inside a thought, so there is no final answer."""


class AnswerParser:
    """Sorts the tokens of one answer into its parts, as they come.

    Args:
        tokenizer: the tokenizer they were generated with.

    Attributes:
        thinking, content: ids of the thought and of the text around the calls.
        calls: ids of each call's name and of its arguments.
        state: of the thought.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.thinking: list[int] = []
        self.content: list[int] = []
        self.calls: list[tuple[list[int], list[int]]] = []
        self.state: ThinkingState = "none"
        self._tokenizer = tokenizer
        self._target = self.content
        self._has_ended = False

    def push(self, token_id: int) -> Part | None:
        """Which part ``token_id`` belongs to; None for a tag, and for whatever follows the end token."""
        ids = self._tokenizer.ids
        if self._has_ended:
            return None
        if token_id == ids.eos:
            self._has_ended = True
        elif token_id == ids.think:
            self.state, self._target = "unterminated", self.thinking
        elif token_id == ids.end_think:
            # Outside a thought the tag is stray and says nothing; the text before it is already where it belongs.
            if self._target is self.thinking:
                self.state, self._target = "closed", self.content
        elif token_id == ids.tool_calls:
            if self._target is self.thinking:
                self.state = "closed"
            self.calls.append(([], []))
            self._target = self.calls[-1][0]
        elif token_id == ids.args and self.part == "name":
            self._target = self.calls[-1][1]
        else:
            self._target.append(token_id)
            return self.part
        return None

    @property
    def part(self) -> Part:
        """Where a token that is no tag would go now."""
        if self._target is self.thinking:
            return "thinking"
        if self._target is self.content:
            return "content"
        return "name" if self._target is self.calls[-1][0] else "arguments"

    @property
    def answer(self) -> Answer:
        """What has been written so far."""
        decode = self._tokenizer.decode
        return Answer(
            thinking=decode(self.thinking),
            content=decode(self.content),
            tool_calls=[ToolCall(name=decode(name), arguments=decode(arguments)) for name, arguments in self.calls],
            thinking_tokens=len(self.thinking),
            content_tokens=len(self.content),
            tool_call_tokens=sum(len(name) + len(arguments) for name, arguments in self.calls),
            thinking_state=self.state,
        )


def parse_answer(token_ids: Sequence[int], tokenizer: ChatTokenizer) -> Answer:
    """Split generated tokens into thinking, content and tool calls.

    Args:
        token_ids: what the model generated, with or without its end token; whatever follows the end token is ignored.
        tokenizer: the tokenizer it was generated with.

    Returns:
        The answer. Arguments of tool calls are the text the model wrote; ``ToolCall.parsed`` says whether it is an object.
    """
    parser = AnswerParser(tokenizer)
    for token_id in token_ids:
        parser.push(token_id)
    return parser.answer
