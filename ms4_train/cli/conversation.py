"""The turns of ``ms4 chat`` and the commands that a user may type between them.

Exercise it: ``pytest tests/ms4_train/cli/test_conversation.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ms4_train.cli.model_options import Mode
from ms4_train.errors import MS4Error

if TYPE_CHECKING:
    from ms4_train.chat import Answer

CHAT_HELP = "/mode none|high changes the reasoning mode, /reset forgets the conversation, /quit ends it."


class Conversation:
    """The turns of ``ms4 chat`` and its commands.

    Args:
        ask: answers the messages in a mode and shows the answer while it comes.
        say: shows a note to the user.
        mode: of the first turn.
        system: system prompt, if any.
    """

    def __init__(
        self, ask: Callable[[list[dict[str, Any]], Mode], Answer], say: Callable[[str], None], mode: Mode, system: str | None
    ) -> None:
        self.mode = mode
        self._ask = ask
        self._say = say
        self._system: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)

    def enter(self, line: str) -> bool:
        """Handles one line of the user's; returns whether the conversation goes on. Errors end a turn, not the conversation."""
        line = line.strip()
        if line.startswith("/"):
            return self._command(line)
        if line:
            self._turn(line)
        return True

    def _command(self, line: str) -> bool:
        name, _, value = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/reset":
            self.messages = list(self._system)
            self._say("conversation forgotten")
        elif name == "/mode" and value.strip() in Mode.__members__:
            self.mode = Mode(value.strip())
            self._say(f"mode {self.mode.value}")
        else:
            self._say(f"mode {self.mode.value}. {CHAT_HELP}")
        return True

    def _turn(self, text: str) -> None:
        messages = [*self.messages, {"role": "user", "content": text}]
        try:
            answer = self._ask(messages, self.mode)
        except MS4Error as error:
            self._say(str(error))
            return
        except KeyboardInterrupt:
            self._say("stopped; this turn is forgotten")
            return
        if not answer.content.strip() or answer.tool_calls:
            self._say("no plain answer; this turn is forgotten")
            return
        reply: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.thinking:
            reply["reasoning_content"] = answer.thinking
        self.messages = [*messages, reply]
