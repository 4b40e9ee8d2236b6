"""What a user may type between the turns of ``ms4 chat``: lines that begin with a slash.

Exercise it: ``pytest tests/ms4_train/cli/test_chat_commands.py``.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ms4_train.cli.answers import user_message
from ms4_train.cli.conversation import Conversation
from ms4_train.cli.model_options import Mode
from ms4_train.errors import EngineError, MS4Error

MAX_TOOLS_BYTES = 1 << 20
CHAT_HELP = """\
/mode none|high      answer directly, or think first
/temperature X       0 takes the most likely token; alone: the mode's default
/system TEXT|FILE    system prompt, from the next turn on; alone: none
/image FILE ...      show images with the next message; alone: none
/tools FILE          JSON file of tools that the model may call; you type their results; alone: none
/undo, /reset        forget the last turn, or all of them
/save FILE           write the conversation as a training row
/quit                end; so does Ctrl-D. Ctrl-C stops an answer."""


class ChatCommands:
    """Carries out commands.

    Args:
        conversation: that they are about.
        say: shows a note to the user.
        read_system: makes the system's messages of a text or file name.
    """

    def __init__(self, conversation: Conversation, say: Callable[[str], None], read_system: Callable[[str], list[dict[str, Any]]]) -> None:
        self._conversation = conversation
        self._say = say
        self._read_system = read_system
        self._commands: dict[str, Callable[[str], None]] = {
            "/mode": self._mode,
            "/temperature": self._temperature,
            "/system": self._system,
            "/image": self._image,
            "/tools": self._tools,
            "/undo": lambda _: conversation.forget_last(),
            "/reset": lambda _: conversation.forget_all(),
            "/save": self._save,
        }

    def enter(self, line: str) -> bool:
        """Handles one line of the user's, a command or a message; returns whether the conversation goes on. Errors are said, not raised."""
        line = line.strip()
        if not line.startswith("/"):
            if line:
                self._conversation.turn(line)
            return True
        name, _, value = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        command = self._commands.get(name)
        if command is None:
            self._say(CHAT_HELP if name == "/help" else f"unknown command; there are:\n{CHAT_HELP}")
            return True
        try:
            command(value.strip())
        except MS4Error as error:
            self._say(str(error))
        return True

    def _mode(self, value: str) -> None:
        if value not in Mode.__members__:
            now = self._conversation.settings.mode.value
            raise EngineError(
                f"{value!r:.40} is no mode; " * bool(value) + f"the mode is {now}.", key="/mode", fix="/mode none, or /mode high."
            )
        self._conversation.settings.mode = Mode(value)
        self._say(f"mode {value}")

    def _temperature(self, value: str) -> None:
        try:
            temperature = float(value) if value else None
        except ValueError:
            temperature = math.nan
        if temperature is not None and not 0 <= temperature < math.inf:
            raise EngineError(f"{value!r:.40} is not a number of 0 or more.", key="/temperature", fix="/temperature 0.7")
        self._conversation.settings.temperature = temperature
        self._say(f"temperature {'as the mode has it' if temperature is None else f'{temperature:g}'}")

    def _system(self, value: str) -> None:
        self._conversation.system = self._read_system(value)
        self._say("system prompt changed" if self._conversation.system else "no system prompt")

    def _image(self, value: str) -> None:
        try:
            paths = [Path(text).expanduser() for text in shlex.split(value)]
        except ValueError:
            raise EngineError("a quotation mark is missing.", key="/image", fix="put names with spaces into quotation marks.") from None
        user_message("", paths)  # says what is wrong with them now
        self._conversation.images = [*self._conversation.images, *paths] if paths else []
        self._say(f"images with the next message: {len(self._conversation.images)}")

    def _tools(self, value: str) -> None:
        tools = read_tools_file(Path(value).expanduser()) if value else []
        self._conversation.settings.tools = tools
        self._say(f"tools: {', '.join(tool['function']['name'] for tool in tools) or 'none'}")

    def _save(self, value: str) -> None:
        if not value:
            raise EngineError("names no file.", key="/save", fix="/save FILE")
        self._conversation.save(Path(value).expanduser())


def read_tools_file(path: Path) -> list[dict[str, Any]]:
    """The tool definitions of a JSON file, in OpenAI's form.

    Raises:
        UntrustedInputError: it cannot be read.
        RowError: it holds something else.
    """
    from ms4_train.chat.tool_fields import read_tools
    from ms4_train.untrusted import read_text

    text = read_tools(read_text(path, max_bytes=MAX_TOOLS_BYTES))
    return json.loads(text) if text else []
