"""Requests for mistral-common."""

from __future__ import annotations

from mistral_common.protocol.instruct.chunk import ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage
from support.images import encoded, picture
from support.rows import tool_row

from ms4_train.chat import ChatRow, ImagePart, Message, read_row
from ms4_train.chat.image_encoders import SizeEncoder
from ms4_train.chat.request import to_request
from ms4_train.untrusted import inspect_image


def test_every_part_arrives() -> None:
    request = to_request(read_row(tool_row()), SizeEncoder.chunk)
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
    request = to_request(ChatRow((Message("user", "q"), Message("assistant", "a"))), SizeEncoder.chunk)
    assert request.tools is None
    assistant = request.messages[1]
    assert isinstance(assistant, AssistantMessage)
    assert (assistant.content, assistant.tool_calls) == ("a", None)


def test_images_become_what_the_caller_says() -> None:
    image = inspect_image(encoded(picture(30, 20)))
    shown = (ImagePart(image), "what?", ImagePart(image))
    row = ChatRow((Message("user", "what?", parts=shown), Message("tool", "what?", tool_call_id="c", parts=shown)))
    for message in to_request(row, SizeEncoder.chunk).messages:
        assert isinstance(message.content, list)
        assert [chunk.type for chunk in message.content] == ["image_url", "text", "image_url"]
        assert message.content[0] == SizeEncoder.chunk(image)
