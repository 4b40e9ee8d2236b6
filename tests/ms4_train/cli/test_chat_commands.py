"""What the commands of a chat change, and that wrong ones are said and change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.images import encoded, picture

from ms4_train.chat import Answer
from ms4_train.cli.answers import Reply
from ms4_train.cli.chat_commands import CHAT_HELP, ChatCommands, read_tools_file
from ms4_train.cli.conversation import ChatSettings, Conversation
from ms4_train.cli.model_options import Mode
from ms4_train.errors import RowError
from ms4_train.inference import Completion

ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}


class Chat:
    """Commands over a conversation that answers "5" to everything."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.asked: list[list[dict[str, Any]]] = []
        self.conversation = Conversation(self._ask, input, self.said.append, ChatSettings(), [])
        self._commands = ChatCommands(
            self.conversation, self.said.append, lambda text: [{"role": "system", "content": text}] if text else []
        )

    def _ask(self, messages: list[dict[str, Any]], settings: ChatSettings) -> Reply:
        self.asked.append(messages)
        return Reply(Answer("", "5"), Completion("x", [], "stop", None, 1, 1, 0.1))

    def enter(self, *lines: str) -> str:
        """What the last of the lines said."""
        before = len(self.said)
        for line in lines:
            assert self._commands.enter(line)
        return "\n".join(self.said[before:])


def test_lines_without_a_slash_are_turns_and_empty_ones_nothing() -> None:
    chat = Chat()
    chat.enter("  hello ", "", "   ")
    assert chat.asked == [[{"role": "user", "content": "hello"}]]
    for line in ("/quit", "/exit "):
        assert not chat._commands.enter(line)


def test_settings_change_for_the_next_turn() -> None:
    chat = Chat()
    settings = chat.conversation.settings
    chat.enter("/mode high", "/temperature 0.5")
    assert (settings.mode, settings.temperature) == (Mode.high, 0.5)
    chat.enter("/temperature")
    assert settings.temperature is None
    chat.enter("/system Be brief.", "hi")
    assert chat.asked[-1][0] == {"role": "system", "content": "Be brief."}
    chat.enter("/system", "/undo", "hi")
    assert chat.asked[-1] == [{"role": "user", "content": "hi"}]


def test_images_wait_for_the_next_message(tmp_path: Path) -> None:
    names = ["a.png", "with space.png"]
    for name in names:
        (tmp_path / name).write_bytes(encoded(picture(28, 28)))
    chat = Chat()
    assert "2" in chat.enter(f"/image {tmp_path / names[0]} '{tmp_path / names[1]}'")
    assert chat.conversation.images == [tmp_path / name for name in names]
    assert "0" in chat.enter("/image")
    assert not chat.conversation.images


def test_tools_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([ADD]))
    chat = Chat()
    assert "add" in chat.enter(f"/tools {file}")
    assert chat.conversation.settings.tools == [ADD]
    assert "none" in chat.enter("/tools")
    assert chat.conversation.settings.tools == []
    file.write_text('[{"type": "function"}]')
    with pytest.raises(RowError):
        read_tools_file(file)


def test_undo_reset_and_save(tmp_path: Path) -> None:
    chat = Chat()
    chat.enter("one", "two", "/undo", f"/save {tmp_path / 'chat.jsonl'}")
    row = json.loads((tmp_path / "chat.jsonl").read_text())
    assert [message["content"] for message in row["messages"]] == ["one", "5"]
    chat.enter("/reset", "three")
    assert chat.asked[-1] == [{"role": "user", "content": "three"}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/mode", "the mode is none"),
        ("/mode low", "/mode high"),
        ("/temperature hot", "not a number"),
        ("/temperature -1", "not a number"),
        ("/temperature nan", "not a number"),
        ("/temperature inf", "not a number"),
        ("/image nowhere.png", "nowhere.png"),
        ("/image 'nowhere", "quotation"),
        ("/tools nowhere.json", "nowhere.json"),
        ("/save", "names no file"),
        ("/save chat.jsonl", "nothing to save"),
        ("/what", "unknown command"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(line: str, words: str) -> None:
    chat = Chat()
    assert words in chat.enter(line)
    assert chat.conversation.settings == ChatSettings()
    assert not chat.conversation.images
    assert not chat.asked


def test_a_file_that_is_no_image_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    chat = Chat()
    assert "a.png" in chat.enter(f"/image {tmp_path / 'a.png'}")
    assert not chat.conversation.images


def test_help_names_every_command() -> None:
    chat = Chat()
    assert chat.enter("/help") == CHAT_HELP
    for name in chat._commands._commands:
        assert name in CHAT_HELP
