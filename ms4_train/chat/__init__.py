"""Messages, images and tokens: rows and prompts in, answers out, by the version 15 chat format (spec section 4).

Names are imported when they are first used, because the workers that decode images need no tokenizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms4_train.chat.derive import derive_tokenizer
    from ms4_train.chat.encode import EncodedPrompt, EncodedRow, Span
    from ms4_train.chat.images import ImageSpec, image_tokens, to_image_batch
    from ms4_train.chat.messages import read_prompt, read_row
    from ms4_train.chat.parse import Answer, parse_answer
    from ms4_train.chat.stream import AnswerStream
    from ms4_train.chat.system_prompt import load_system_prompt, render_system_prompt
    from ms4_train.chat.tokenizer import ChatTokenizer
    from ms4_train.chat.types import ChatRow, ImagePart, Message, ToolCall

_HOMES = {
    "Answer": "parse",
    "AnswerStream": "stream",
    "ChatRow": "types",
    "ChatTokenizer": "tokenizer",
    "EncodedPrompt": "encode",
    "EncodedRow": "encode",
    "ImagePart": "types",
    "ImageSpec": "images",
    "Message": "types",
    "Span": "encode",
    "ToolCall": "types",
    "derive_tokenizer": "derive",
    "image_tokens": "images",
    "load_system_prompt": "system_prompt",
    "parse_answer": "parse",
    "read_prompt": "messages",
    "read_row": "messages",
    "render_system_prompt": "system_prompt",
    "to_image_batch": "images",
}

__all__ = [
    "Answer",
    "AnswerStream",
    "ChatRow",
    "ChatTokenizer",
    "EncodedPrompt",
    "EncodedRow",
    "ImagePart",
    "ImageSpec",
    "Message",
    "Span",
    "ToolCall",
    "derive_tokenizer",
    "image_tokens",
    "load_system_prompt",
    "parse_answer",
    "read_prompt",
    "read_row",
    "render_system_prompt",
    "to_image_batch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
