"""Turns the outside form of a conversation (JSON of a training row, messages of a prompt) into a checked ``ChatRow``.

Accepted beside plain text content: lists of ``text``, ``thinking`` and image parts (``ms4_train.chat.image_fields``), and thinking in a
field of its own (``reasoning_content``, ``reasoning`` or ``thinking``). Everything that would be trained on wrongly or silently dropped is
refused with a stable fault code:

- ``not-an-object``, ``no-messages``, ``no-assistant``, ``bad-role``, ``role-order``;
- ``bad-content``, ``empty-user``, ``empty-assistant``, ``unsupported-content``, ``unsupported-field``;
- ``bad-image``, ``image-refused``, ``image-count``;
- ``bad-mode``, ``thinking-in-none``; ``bad-tools``, ``bad-tool-call``, ``tool-result``.

Exercise it: ``pytest tests/ms4_train/chat/test_messages.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from ms4_train.chat.content_fields import content_error, read_content, read_thinking_fields
from ms4_train.chat.image_fields import RowImages
from ms4_train.chat.tool_fields import pair_results, read_call_id, read_tool_calls, read_tools
from ms4_train.chat.types import REASONING_EFFORTS, ChatRow, Message, ReasoningEffort, Role
from ms4_train.errors import RowError
from ms4_train.untrusted import ImageReader

ROLES: tuple[Role, ...] = get_args(Role)

# These change what is trained in other tools' formats; ignoring them would train something else than the user meant. Beside each the value
# that changes nothing. (0 equals False and 1 equals True here: a weight of 0 leaves a turn out, so it must not pass.)
_REFUSED_FIELDS: dict[str, bool | None] = {"function_call": None, "prefix": False, "weight": True, "train": True, "trainable": True}
# What may follow what. A tool message is only reached through a call (``pair_results``).
_MAY_FOLLOW: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("system", "user"),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant", "user"),
}


def read_row(row: Any, *, default_effort: ReasoningEffort = "none", images: ImageReader | None = None) -> ChatRow:
    """Check a training row: a whole conversation that ends with the assistant.

    Args:
        row: ``{"messages": [...], "tools": [...], "reasoning_effort": "none" | "high", "images": [...]}``; all but the first are optional.
        default_effort: mode of a row that names none.
        images: where images may come from; None refuses rows with images.

    Raises:
        RowError: with the fault's code and the key it is at; the caller adds file and line.
    """
    if not isinstance(row, Mapping):
        raise RowError("a row must be a JSON object.", row_code="not-an-object", fix='write {"messages": [...]}.')
    effort = read_effort(row.get("reasoning_effort"), default=default_effort)
    row_images = RowImages(images, row.get("images"))
    messages = _read_messages(row.get("messages"), row_images)
    row_images.check_all_used()
    if not any(message.role == "assistant" for message in messages):
        raise RowError("no message is from the assistant, so nothing can be trained.", row_code="no-assistant", key="messages")
    if messages[-1].role != "assistant":
        raise _order_error(
            len(messages) - 1, f"the last message is from the {messages[-1].role}.", "end the row with an assistant message."
        )
    for index, message in enumerate(messages):
        if message.thinking is not None:
            _check_trained_thinking(message, effort, f"messages[{index}]")
    return ChatRow(messages=messages, tools_json=read_tools(row.get("tools")), reasoning_effort=effort)


def read_prompt(messages: Any, *, tools: Any = None, reasoning_effort: str | None = "none", images: ImageReader | None = None) -> ChatRow:
    """Check the messages of a prompt: a conversation that waits for the assistant's next turn.

    Args:
        messages: as in a row, ending with a user or tool message.
        tools: definitions in OpenAI's form.
        reasoning_effort: the mode; None means ``none``.
        images: where images may come from; None refuses messages with images.

    Raises:
        RowError: with the fault's code and key.
    """
    effort = read_effort(reasoning_effort, default="none")
    checked = _read_messages(messages, RowImages(images))
    if checked[-1].role not in ("user", "tool"):
        raise _last_error(checked, "end the prompt with a user message.")
    return ChatRow(messages=checked, tools_json=read_tools(tools), reasoning_effort=effort)


def read_effort(value: Any, *, default: ReasoningEffort) -> ReasoningEffort:
    """The reasoning mode; None means ``default``.

    Raises:
        RowError: ``bad-mode``.
    """
    if value is None:
        return default
    for effort in REASONING_EFFORTS:
        if value == effort:
            return effort
    raise RowError(f"unknown mode {value!r:.40}.", row_code="bad-mode", key="reasoning_effort", fix="use none or high.")


def _check_trained_thinking(message: Message, effort: ReasoningEffort, key: str) -> None:
    if not message.thinking_closed:
        raise content_error("an unclosed thought cannot be trained on.", key, "close it, or cut the row before it.")
    if effort == "none":
        raise RowError(
            "an assistant turn has thinking, but the row's mode is none; training on it would teach the mode to think.",
            row_code="thinking-in-none",
            key=key,
            fix="set reasoning_effort: high in the row or on the data source, or remove the thinking.",
        )


def _read_messages(value: Any, images: RowImages) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise RowError(
            "must be a list of at least one message.", row_code="no-messages", key="messages", fix="check data.*.fields.messages."
        )
    messages = [_read_message(entry, f"messages[{index}]", images) for index, entry in enumerate(value)]
    return tuple(_check_order(messages))


def _check_order(messages: list[Message]) -> list[Message]:
    """Check the order of roles and pair tool results with their calls."""
    previous: Role | None = None
    for index, message in enumerate(messages):
        if message.role not in _MAY_FOLLOW[previous]:
            after = f"after {_with_article(previous)} message" if previous else "at the start"
            if previous == message.role:
                fix = "join the two messages into one."
            elif message.role == "system":
                fix = "put system messages first."
            else:
                fix = "let user and assistant take turns, beginning with the user."
            raise _order_error(index, f"{_with_article(message.role)} message cannot stand {after}.", fix)
        previous = message.role
    ordered: list[Message] = []
    position = 0
    while position < len(messages):
        message = messages[position]
        stop = position + 1
        if message.role == "assistant":
            while stop < len(messages) and messages[stop].role == "tool":
                stop += 1
            results = messages[position + 1 : stop]
            if message.tool_calls or results:
                key = f"messages[{position}]"
                calls, results = pair_results(message.tool_calls, results, key)
                if calls and not results and stop < len(messages):
                    raise RowError(
                        "its calls have no results, but the conversation goes on.",
                        row_code="tool-result",
                        key=key,
                        fix="after a turn with calls, give one tool message for each call.",
                    )
                message = replace(message, tool_calls=calls)
            ordered += [message, *results]
        else:
            ordered.append(message)
        position = stop
    return ordered


def _read_message(entry: Any, key: str, images: RowImages) -> Message:
    if not isinstance(entry, Mapping):
        raise content_error("must be an object with role and content.", key)
    role = entry.get("role")
    if role not in ROLES:
        hint = " The row looks like ShareGPT's form (from, value)." if "from" in entry else ""
        shown = "no role" if role is None else f"the unknown role {role!r:.40}"
        raise RowError(f"has {shown}.{hint}", row_code="bad-role", key=key, fix=f"use one of {', '.join(ROLES)}.")
    for name, harmless in _REFUSED_FIELDS.items():
        if entry.get(name) not in (None, harmless):
            raise RowError(
                f"the field {name} with the value {entry[name]!r:.40} is not supported.",
                row_code="unsupported-field",
                key=f"{key}.{name}",
                fix="remove it; see data.train_on_turns.",
            )
    content = read_content(entry.get("content"), f"{key}.content", role, images)
    text, thinking, closed = content.text, content.thinking, content.thinking_closed
    field_thinking = read_thinking_fields(entry, key)
    if field_thinking is not None:
        if thinking is not None:
            raise content_error("thinking stands both in the content and in a field of its own.", key)
        thinking = field_thinking
    if role == "assistant":
        calls = read_tool_calls(entry.get("tool_calls"), f"{key}.tool_calls")
        if not calls and not text.strip():
            raise RowError(
                "the assistant's turn is empty." if thinking is None else "the assistant thinks, but neither answers nor calls a tool.",
                row_code="empty-assistant",
                key=key,
                fix="remove the turn, or give it text or tool calls.",
            )
        return Message("assistant", text, thinking, closed, calls)
    if thinking is not None:
        raise content_error(f"a {role} message cannot hold thinking.", key)
    if entry.get("tool_calls"):
        raise content_error(f"a {role} message cannot hold tool calls.", key)
    if role == "tool":
        return Message("tool", text, tool_call_id=read_call_id(entry.get("tool_call_id"), f"{key}.tool_call_id"), parts=content.parts)
    if role == "user" and not text.strip() and not content.parts:
        raise RowError("the user's turn is empty.", row_code="empty-user", key=key, fix="remove the row, or give the turn text.")
    return Message(role, text, parts=content.parts)


def _with_article(role: Role) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"


def _order_error(index: int, message: str, fix: str) -> RowError:
    return RowError(message, row_code="role-order", key=f"messages[{index}]", fix=fix)


def _last_error(messages: Sequence[Message], fix: str) -> RowError:
    return _order_error(len(messages) - 1, f"the last message is from the {messages[-1].role}.", fix)
