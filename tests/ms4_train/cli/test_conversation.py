"""What a conversation remembers, what its commands do, and that a failed turn leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import Answer
from ms4_train.cli.conversation import Conversation
from ms4_train.cli.model_options import Mode
from ms4_train.errors import EngineError


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


class TestConversation:
    def make(self, answers: list[Any], **options: Any) -> tuple[Conversation, list[tuple[list, Mode]], list[str]]:
        asked: list[tuple[list, Mode]] = []
        said: list[str] = []

        def ask(messages: list[dict[str, Any]], mode: Mode) -> Answer:
            asked.append((messages, mode))
            answer = answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return Conversation(ask, said.append, options.get("mode", Mode.none), options.get("system")), asked, said

    def test_turns_are_remembered_with_their_thinking_and_reset_keeps_the_system_prompt(self) -> None:
        conversation, asked, _ = self.make([Answer("hm", "5"), Answer("", "6"), Answer("", "7")], system="Be brief.")
        system = {"role": "system", "content": "Be brief."}
        for line in ("first", "/mode high", "  ", "second", "/reset", "third"):
            assert conversation.enter(line)
        assert asked[0] == ([system, *user("first")], Mode.none)
        reply = {"role": "assistant", "content": "5", "reasoning_content": "hm"}
        assert asked[1] == ([system, *user("first"), reply, *user("second")], Mode.high)
        assert asked[2] == ([system, *user("third")], Mode.high)
        tiny_tokenizer().encode_chat(asked[1][0], reasoning_effort="high")  # the history is a valid prompt
        assert not conversation.enter("/quit")

    @pytest.mark.parametrize("failure", [EngineError("too long"), KeyboardInterrupt(), Answer("hm", " "), Answer("", "")])
    def test_a_turn_that_fails_is_forgotten_and_the_conversation_goes_on(self, failure: Any) -> None:
        conversation, asked, said = self.make([failure, Answer("", "5")])
        assert conversation.enter("first")
        assert said
        assert conversation.enter("second")
        assert asked[1][0] == user("second")

    def test_unknown_commands_say_what_there_is(self) -> None:
        conversation, asked, said = self.make([])
        for line in ("/mode", "/mode low", "/help"):
            assert conversation.enter(line)
        assert all("/mode none|high" in text for text in said)
        assert len(said) == 3
        assert not asked
