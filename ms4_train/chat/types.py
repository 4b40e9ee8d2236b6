"""What a conversation is after its outside form has been checked: plain frozen records that every later step can trust.

``ms4_train.chat.messages`` makes them; ``encode``, ``request`` and ``parse`` use them. Exercise it: ``pytest tests/ms4_train/chat``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ms4_train.untrusted import EncodedImage, parse_json

Role = Literal["system", "user", "assistant", "tool"]
ReasoningEffort = Literal["none", "high"]

REASONING_EFFORTS: tuple[ReasoningEffort, ...] = ("none", "high")
"""The two modes that the release's tokenizer accepts (spec section 4)."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool by the assistant."""

    name: str
    arguments: str
    """JSON text. In a checked row it is an object; in a parsed answer it is what the model wrote, valid or not."""
    id: str = ""
    """Pairs a call with its result. It is not part of the token stream; parsed answers have none."""

    def parsed(self) -> dict[str, Any]:
        """The arguments as an object.

        Raises:
            UntrustedInputError: the text is not strict JSON.
            ValueError: it is JSON, but not an object.
        """
        value = parse_json(self.arguments)
        if not isinstance(value, dict):
            raise ValueError(f"the arguments are a {type(value).__name__}, not an object")
        return value


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image inside a turn."""

    image: EncodedImage


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Only an assistant has thinking or calls; only a tool has ``tool_call_id``; only users and tools have images."""

    role: Role
    text: str
    thinking: str | None = None
    """None: no thinking at all. Empty text: the two tags with nothing between them."""
    thinking_closed: bool = True
    """False: the thought was cut off, so no closing tag is written."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    parts: tuple[str | ImagePart, ...] = ()
    """Of a turn with images: texts and images in the order they were given, no two texts beside each other, none empty. Else empty.
    ``text`` is all its texts joined."""

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """The images of the turn in their order."""
        return tuple(part.image for part in self.parts if isinstance(part, ImagePart))


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A checked conversation with its tools and its reasoning mode."""

    messages: tuple[Message, ...]
    tools_json: str = ""
    """The tool definitions as canonical JSON text (a list in OpenAI's form), empty without tools."""
    reasoning_effort: ReasoningEffort = "none"

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """The images of all turns in their order."""
        return tuple(image for message in self.messages for image in message.images)
