"""Reads the content of one message: text, parts of text and images, thinking.

Exercise it: ``pytest tests/ms4_train/chat/test_content_fields.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ms4_train.chat.image_fields import IMAGE_TYPES, RowImages
from ms4_train.chat.types import ImagePart
from ms4_train.errors import RowError

_THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class Content:
    """What a message says."""

    text: str = ""
    thinking: str | None = None
    thinking_closed: bool = True
    parts: tuple[str | ImagePart, ...] = ()
    """As ``Message.parts``: only where there are images."""


def read_content(content: Any, key: str, role: str, images: RowImages) -> Content:
    """Check the ``content`` of a message.

    Raises:
        RowError: ``bad-content``, ``unsupported-content``, or what ``RowImages.read_part`` raises.
    """
    if content is None:
        return Content()
    if isinstance(content, str):
        return Content(content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise content_error("must be text or a list of parts.", key)
    parts: list[str | ImagePart] = []
    thinking: str | None = None
    closed = True
    for index, part in enumerate(content):
        place = f"{key}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(text, str):
            parts.append(text)
        elif isinstance(part, Mapping) and kind == "thinking":
            if thinking is not None or any(parts):
                raise content_error("a turn has at most one thinking part, and it stands before the text.", place)
            thinking = _read_thinking_part(part.get("thinking"), place)
            closed = part.get("closed") is not False
        elif isinstance(part, Mapping) and kind in IMAGE_TYPES:
            parts.append(images.read_part(part, place, role))
        elif isinstance(kind, str) and kind not in ("text", "thinking"):
            raise RowError(
                f"parts of type {kind!r:.40} are not supported.",
                row_code="unsupported-content",
                key=place,
                fix="use text and image parts.",
            )
        else:
            raise content_error('must be {"type": "text", "text": ...} or {"type": "thinking", "thinking": ...}.', place)
    # Without separator, as mistral-common joins the text parts of a version 15 message.
    text = "".join(part for part in parts if isinstance(part, str))
    return Content(text, thinking, closed, _joined(parts) if any(isinstance(part, ImagePart) for part in parts) else ())


def read_thinking_fields(entry: Mapping[str, Any], key: str) -> str | None:
    """Thinking that a message keeps beside its content.

    Raises:
        RowError: ``bad-content``.
    """
    found: str | None = None
    for name in _THINKING_FIELDS:
        value = entry.get(name)
        # Data sets write "" where a turn has no thinking.
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise content_error("must be text.", f"{key}.{name}")
        if found is not None and found != value:
            raise content_error(f"two of {', '.join(_THINKING_FIELDS)} differ.", key, "keep one of them.")
        found = value
    return found


def content_error(message: str, key: str, fix: str = "write the message in the form the documentation shows.") -> RowError:
    """The error of a message whose content has the wrong form."""
    return RowError(message, row_code="bad-content", key=key, fix=fix)


def _joined(parts: Sequence[str | ImagePart]) -> tuple[str | ImagePart, ...]:
    """The parts with neighbouring texts in one, and without empty ones."""
    out: list[str | ImagePart] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, str) and isinstance(last, str):
            out[-1] = last + part
        elif part != "":
            out.append(part)
    return tuple(out)


def _read_thinking_part(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        pieces = [piece.get("text") if isinstance(piece, Mapping) and piece.get("type") == "text" else None for piece in value]
        texts = [piece for piece in pieces if isinstance(piece, str)]
        if len(texts) == len(pieces):
            return "".join(texts)
    raise content_error("must be text or a list of text parts.", f"{key}.thinking")
