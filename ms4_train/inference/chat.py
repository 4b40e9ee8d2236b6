"""From messages to a request, and from a completion to an answer's parts.

Exercise it: ``pytest tests/ms4_train/inference/test_chat.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ms4_train.chat import Answer, ChatTokenizer, parse_answer
from ms4_train.chat.types import ReasoningEffort
from ms4_train.inference.request import Completion, GenerationRequest, SamplingParams


def chat_request(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    request_id: str,
    reasoning_effort: ReasoningEffort,
    sampling: SamplingParams,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> GenerationRequest:
    """A request for the assistant's answer to ``messages``.

    Args:
        tokenizer: of the model.
        messages: in the row format of the data rooms, ending with a user or tool message.
        request_id: the caller's name for it.
        reasoning_effort: "high" lets the model think first, "none" asks for the answer directly.
        sampling: how its tokens are chosen.
        tools: that the model may call.

    Raises:
        MS4Error: messages in the wrong order or form.
    """
    prompt_ids = tokenizer.encode_chat(messages, tools=tools, reasoning_effort=reasoning_effort)
    return GenerationRequest(request_id, tuple(prompt_ids), sampling)


def completion_answer(completion: Completion, tokenizer: ChatTokenizer) -> Answer:
    """The thinking, content and tool calls of a completion."""
    return parse_answer(completion.token_ids, tokenizer)
