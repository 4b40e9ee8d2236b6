"""The turns of ``ms4 chat``: what is remembered of them, and the calls of tools within them, whose results the user types.

Nothing is run on a model's behalf. Exercise it: ``pytest tests/ms4_train/cli/test_conversation.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms4_train.cli.answers import Reply, user_message
from ms4_train.cli.model_options import Mode
from ms4_train.errors import EngineError, MS4Error, StorageError

if TYPE_CHECKING:
    from ms4_train.chat import Answer

MAX_ROUNDS = 32
"""Of calls and results within one turn."""


@dataclass
class ChatSettings:
    """What holds from the next turn on.

    Attributes:
        mode: reasoning mode.
        temperature: None: the mode's default.
        tools: definitions in OpenAI's form.
    """

    mode: Mode = Mode.none
    temperature: float | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)


class Conversation:
    """The turns of ``ms4 chat``.

    Args:
        ask: answers the messages under the settings, and shows the answer while it comes.
        read: shows a prompt to the user and returns the line that is typed.
        say: shows a note to the user.
        settings: of the first turn.
        system: messages that stand before all others.

    Attributes:
        messages: after the system's, as they would stand in a training row.
        images: files that go with the next message.
        is_cut: whether some remembered answer was stopped, or ended at its limit of tokens.
    """

    def __init__(
        self,
        ask: Callable[[list[dict[str, Any]], ChatSettings], Reply],
        read: Callable[[str], str],
        say: Callable[[str], None],
        settings: ChatSettings,
        system: list[dict[str, Any]],
    ) -> None:
        self.settings = settings
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self.images: list[Path] = []
        self.is_cut = False
        self._ask = ask
        self._read = read
        self._say = say

    def turn(self, text: str) -> None:
        """Answers what the user says. Errors and Ctrl-C end the turn, not the conversation; a turn without an answer is forgotten."""
        images, self.images = self.images, []
        try:
            self.messages = self._answered([*self.messages, user_message(text, images)])
        except MS4Error as error:
            self._say(f"{error} This turn is forgotten.")
        except (KeyboardInterrupt, EOFError):
            self._say("stopped; this turn is forgotten")

    def forget_last(self) -> None:
        """Forgets the last message of the user and what came after it."""
        last = max((place for place, message in enumerate(self.messages) if message["role"] == "user"), default=None)
        if last is None:
            self._say("nothing to forget")
            return
        del self.messages[last:]
        self._say("last turn forgotten")

    def forget_all(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages, self.images, self.is_cut = [], [], False
        self._say("conversation forgotten")

    def save(self, path: Path) -> None:
        """Writes the conversation as one training row.

        Raises:
            EngineError: there is no turn.
            StorageError: the file exists, or cannot be written.
        """
        from ms4_train.storage import atomic_write_text, storage_errors

        if not self.messages:
            raise EngineError("there is nothing to save.", key="/save", fix="talk first.")
        if path.exists():
            raise StorageError("exists.", file=path, fix="choose another name.")
        has_thoughts = any("reasoning_content" in message for message in self.messages)
        row: dict[str, Any] = {"messages": [*self.system, *self.messages]}
        if self.settings.tools:
            row["tools"] = self.settings.tools
        row["reasoning_effort"] = Mode.high.value if has_thoughts else self.settings.mode.value
        with storage_errors(path):
            atomic_write_text(path, json.dumps(row, ensure_ascii=False) + "\n")
        cut = "; an answer in it was cut off, so do not train on it as it is" if self.is_cut else ""
        self._say(f"saved as a training row: {path}{cut}")

    def _answered(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``messages`` and what answers them, calls and results included.

        Raises:
            EngineError: there is no answer, or a call that cannot be answered.
        """
        for _ in range(MAX_ROUNDS):
            reply = self._ask([*self.system, *messages], self.settings)
            answer, was_stopped = reply.answer, reply.completion is None
            if answer.tool_calls and not was_stopped:
                messages = [*messages, _with_calls(answer), *self._results(answer)]
                continue
            if not answer.content.strip():
                raise EngineError("stopped before the answer began." if was_stopped else "the model gave no answer.")
            if was_stopped:
                self._say("stopped; what came before is remembered")
            self.is_cut |= was_stopped or (reply.completion is not None and reply.completion.finish_reason == "length")
            return [*messages, _with_thought(answer)]
        raise EngineError(f"the model called tools {MAX_ROUNDS} times without an answer.")

    def _results(self, answer: Answer) -> list[dict[str, Any]]:
        results = []
        for number, call in enumerate(answer.tool_calls):
            text = self._read(f"result of {call.name}({call.arguments}): ")
            results.append({"role": "tool", "tool_call_id": _call_id(number), "content": text})
        return results


def _with_thought(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.thinking:
        message["reasoning_content"] = answer.thinking
    return message


def _with_calls(answer: Answer) -> dict[str, Any]:
    for call in answer.tool_calls:
        try:
            call.parsed()
        except (MS4Error, ValueError):
            raise EngineError(f"the model called {call.name!r:.80} with arguments that are no JSON object.") from None
    calls = [
        {"id": _call_id(number), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for number, call in enumerate(answer.tool_calls)
    ]
    return {**_with_thought(answer), "tool_calls": calls}


def _call_id(number: int) -> str:
    return f"call{number:05d}"
