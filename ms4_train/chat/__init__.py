"""Messages, images and tokens: rows and prompts in, answers out, by the version 15 chat format (spec section 4)."""

from ms4_train.chat.derive import derive_tokenizer
from ms4_train.chat.encode import EncodedPrompt, EncodedRow, Span
from ms4_train.chat.images import ImageSpec, image_tokens, to_image_batch
from ms4_train.chat.messages import read_prompt, read_row
from ms4_train.chat.parse import Answer, parse_answer
from ms4_train.chat.system_prompt import load_system_prompt, render_system_prompt
from ms4_train.chat.tokenizer import ChatTokenizer
from ms4_train.chat.types import ChatRow, ImagePart, Message, ToolCall

__all__ = [
    "Answer",
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
