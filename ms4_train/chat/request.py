"""A checked conversation as mistral-common's request object: the way prompts are encoded, and the oracle for training rows.

Exercise it: ``pytest tests/ms4_train/chat/test_request.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest, ReasoningEffort
from mistral_common.protocol.instruct.tool_calls import FunctionCall, Tool
from mistral_common.protocol.instruct.tool_calls import ToolCall as RequestToolCall

from ms4_train.chat.types import ChatRow, Message
from ms4_train.untrusted import EncodedImage

ImageToChunk = Callable[[EncodedImage], ImageChunk | ImageURLChunk]


def to_request(row: ChatRow, image_chunk: ImageToChunk) -> ChatCompletionRequest[Any]:
    """The request that mistral-common encodes into the token stream of ``row``.

    Args:
        row: a checked conversation.
        image_chunk: makes of an image what the image encoder at the other end understands.
    """
    tools = [Tool.from_openai(entry) for entry in json.loads(row.tools_json)] if row.tools_json else None
    return ChatCompletionRequest(
        messages=[_to_message(message, image_chunk) for message in row.messages],
        tools=tools,
        reasoning_effort=ReasoningEffort(row.reasoning_effort),
    )


def _to_message(message: Message, image_chunk: ImageToChunk) -> UserMessage | SystemMessage | AssistantMessage | ToolMessage:
    shown: Any = message.text
    if message.parts:
        shown = [TextChunk(text=part) if isinstance(part, str) else image_chunk(part.image) for part in message.parts]
    if message.role == "user":
        return UserMessage(content=shown)
    if message.role == "system":
        return SystemMessage(content=message.text)
    if message.role == "tool":
        return ToolMessage(content=shown, tool_call_id=message.tool_call_id)
    calls = [RequestToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments)) for call in message.tool_calls]
    content: Any = message.text or None
    if message.thinking is not None:
        content = [ThinkChunk(thinking=message.thinking, closed=message.thinking_closed)]
        if message.text:
            content.append(TextChunk(text=message.text))
    return AssistantMessage(content=content, tool_calls=calls or None)
