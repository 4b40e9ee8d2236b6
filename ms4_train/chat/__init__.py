"""Messages and tokens: rows and prompts in, answers out, by the version 15 chat format (spec section 4)."""

from ms4_train.chat.derive import derive_tokenizer
from ms4_train.chat.encode import EncodedRow, Span
from ms4_train.chat.messages import read_prompt, read_row
from ms4_train.chat.parse import Answer, parse_answer
from ms4_train.chat.system_prompt import load_system_prompt, render_system_prompt
from ms4_train.chat.tokenizer import ChatTokenizer
from ms4_train.chat.types import ChatRow, Message, ToolCall

__all__ = [
    "Answer",
    "ChatRow",
    "ChatTokenizer",
    "EncodedRow",
    "Message",
    "Span",
    "ToolCall",
    "derive_tokenizer",
    "load_system_prompt",
    "parse_answer",
    "read_prompt",
    "read_row",
    "render_system_prompt",
]
