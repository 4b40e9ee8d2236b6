"""Parses generated tokens back into an answer: thinking, text and tool calls, told apart by token id.

Ids decide, never text: an answer that spells ``[THINK]`` in letters is an answer. Malformed output is data here, not an error, since a
model may write anything: an unterminated thought is reported as such, a stray closing tag is dropped, and ``[TOOL_CALLS]`` ends a thought,
as vLLM's parser has it (spec section 4). Exercise it: ``pytest tests/ms4_train/chat/test_parse.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ms4_train.chat.types import ToolCall

if TYPE_CHECKING:
    from ms4_train.chat.tokenizer import ChatTokenizer

ThinkingState = Literal["none", "closed", "unterminated"]


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


def parse_answer(token_ids: Sequence[int], tokenizer: ChatTokenizer) -> Answer:
    """Split generated tokens into thinking, content and tool calls.

    Args:
        token_ids: what the model generated, with or without its end token; whatever follows the end token is ignored.
        tokenizer: the tokenizer it was generated with.

    Returns:
        The answer. Arguments of tool calls are the text the model wrote; ``ToolCall.parsed`` says whether it is an object.
    """
    ids = tokenizer.ids
    thinking: list[int] = []
    content: list[int] = []
    calls: list[tuple[list[int], list[int]]] = []
    state: ThinkingState = "none"
    target = content
    for token in token_ids:
        if token == ids.eos:
            break
        if token == ids.think:
            state, target = "unterminated", thinking
        elif token == ids.end_think:
            # Outside a thought the tag is stray and says nothing; the text before it is already where it belongs.
            if target is thinking:
                state, target = "closed", content
        elif token == ids.tool_calls:
            if target is thinking:
                state = "closed"
            calls.append(([], []))
            target = calls[-1][0]
        elif token == ids.args and calls and target is calls[-1][0]:
            target = calls[-1][1]
        else:
            target.append(token)
    return Answer(
        thinking=tokenizer.decode(thinking),
        content=tokenizer.decode(content),
        tool_calls=[ToolCall(name=tokenizer.decode(name), arguments=tokenizer.decode(arguments)) for name, arguments in calls],
        thinking_tokens=len(thinking),
        content_tokens=len(content),
        tool_call_tokens=sum(len(name) + len(arguments) for name, arguments in calls),
        thinking_state=state,
    )
