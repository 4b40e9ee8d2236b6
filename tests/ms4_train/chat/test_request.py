"""Requests for mistral-common."""

from __future__ import annotations

from mistral_common.protocol.instruct.chunk import ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage
from support.rows import tool_row

from ms4_train.chat import ChatRow, Message, read_row
from ms4_train.chat.request import to_request


def test_every_part_arrives() -> None:
    request = to_request(read_row(tool_row()))
    assert [message.role for message in request.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "user",
        "assistant",
    ]
    assert request.reasoning_effort == "high"
    assert [tool.function.name for tool in request.tools or []] == ["get_weather", "clock"]
    calling = request.messages[2]
    assert isinstance(calling, AssistantMessage)
    assert isinstance(calling.content, list)
    assert isinstance(calling.content[0], ThinkChunk)
    assert [call.function.arguments for call in calling.tool_calls or []] == ['{"city": "Köln", "days": 2}', "{}"]


def test_absent_parts_stay_absent() -> None:
    request = to_request(ChatRow((Message("user", "q"), Message("assistant", "a"))))
    assert request.tools is None
    assistant = request.messages[1]
    assert isinstance(assistant, AssistantMessage)
    assert (assistant.content, assistant.tool_calls) == ("a", None)
