"""Reads thinking and answer out of what a server sends, in whichever of the known forms they come.

The forms: a field ``reasoning`` or ``reasoning_content`` beside ``content``; ``content`` as a list of parts, thinking among them, as
Mistral's API has it; tags in ``content``, when a server has no parser for the model. What cannot be told apart is thinking without any
mark, as when a server removed the tags: it is read as answer, and the table of kinds says which servers do that.
Exercise it: ``pytest tests/evals/ms4_evals/clients/servers/test_reader.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms4_evals.clients.servers.tags import Split, split_thinking

THINKING_FIELDS = ("reasoning", "reasoning_content")


class AnswerReader:
    """One answer: feed it either every delta of a stream, in order, or the one whole message, then ask for the parts.

    Args:
        reads_tags: thinking may stand in the content between tags; off for servers that tell it apart by token, whose text is text.
    """

    def __init__(self, *, reads_tags: bool = True) -> None:
        self._reads_tags = reads_tags
        self._thinking: list[str] = []
        self._content: list[str] = []
        self._split: Split | None = None

    def feed_delta(self, delta: Mapping[str, Any]) -> None:
        """``choices[0].delta`` of one chunk.

        Raises:
            ValueError: a field holds what no server sends there; nothing of the delta was taken then.
        """
        # Some servers send the same text under both names, for clients old and new.
        thinking = [_text(delta[name], name) for name in THINKING_FIELDS if delta.get(name)][:1]
        content: list[str] = []
        value = delta.get("content")
        if isinstance(value, list):
            for part in value:
                _read_part(part, thinking, content)
        elif value is not None:
            content.append(_text(value, "content"))
        self._thinking += thinking
        self._content += content
        self._split = None

    def feed_message(self, message: Mapping[str, Any]) -> None:
        """``choices[0].message`` of a whole reply; raises as :meth:`feed_delta` does."""
        self.feed_delta(message)

    @property
    def thinking(self) -> str:
        """So far, without tags."""
        return self._parts.thinking

    @property
    def answer(self) -> str:
        """The final answer so far."""
        return self._parts.answer

    @property
    def thinking_is_open(self) -> bool:
        """The text ends within a thought; where thinking came apart from content, there is some of it and no answer."""
        return self._parts.is_open

    @property
    def _parts(self) -> Split:
        if self._split is None:
            told, content = "".join(self._thinking), "".join(self._content)
            if told or not self._reads_tags:
                self._split = Split(told, content, bool(told) and not content)
            else:
                self._split = split_thinking(content)
        return self._split


def _read_part(part: Any, thinking: list[str], content: list[str]) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "thinking":
        thinking.append(_thinking_text(part.get("thinking")))
    elif kind == "text":
        content.append(_text(part.get("text"), "content.text"))
    else:
        raise ValueError(f"content has a part of type {str(kind)[:40]!r}")


def _thinking_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"content.thinking is {type(value).__name__}, not a list")
    return "".join(_text(part.get("text") if isinstance(part, Mapping) else part, "content.thinking.text") for part in value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not text")
    return value
