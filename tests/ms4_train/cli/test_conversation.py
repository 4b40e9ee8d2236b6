"""What a conversation remembers, how calls are answered in it, and that a failed turn leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.images import encoded, picture
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import Answer, ToolCall, read_prompt, read_row
from ms4_train.cli.answers import Reply
from ms4_train.cli.conversation import MAX_ROUNDS, ChatSettings, Conversation
from ms4_train.cli.model_options import Mode
from ms4_train.errors import EngineError, MS4Error, StorageError
from ms4_train.inference import Completion
from ms4_train.untrusted import ImageReader

ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}
DONE = Completion("x", [], "stop", None, 1, 1, 0.1)
SYSTEM = [{"role": "system", "content": "Be brief."}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


class Talk:
    """A conversation whose answers and typed lines are given beforehand; an exception is raised in their place."""

    def __init__(self, answers: Sequence[Any], typed: Sequence[Any] = (), system: list[dict[str, Any]] | None = None) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self.prompts: list[str] = []
        self.said: list[str] = []
        self._answers, self._typed = list(answers), list(typed)
        self.conversation = Conversation(self._ask, self._read, self.said.append, ChatSettings(), system or [])

    def _ask(self, messages: list[dict[str, Any]], settings: ChatSettings) -> Reply:
        self.asked.append(messages)
        answer = self._answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(answer, DONE)

    def _read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self._typed.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line


def test_turns_are_remembered_with_their_thinking() -> None:
    talk = Talk([Answer("hm", "5"), Answer("", "6"), Answer("", "7")], system=SYSTEM)
    talk.conversation.turn("first")
    talk.conversation.turn("second")
    reply = {"role": "assistant", "content": "5", "reasoning_content": "hm"}
    assert talk.asked == [[*SYSTEM, user("first")], [*SYSTEM, user("first"), reply, user("second")]]
    tiny_tokenizer().encode_chat(talk.asked[1], reasoning_effort="high")  # the history is a valid prompt
    talk.conversation.forget_all()
    talk.conversation.turn("third")
    assert talk.asked[2] == [*SYSTEM, user("third")]
    assert not talk.conversation.images


def test_undo_forgets_the_last_turn_with_its_calls() -> None:
    call = Answer("", "", [ToolCall("add", "{}")])
    talk = Talk([Answer("", "5"), call, Answer("", "6"), Answer("", "7")], typed=["1"])
    for text in ("first", "second"):
        talk.conversation.turn(text)
    talk.conversation.forget_last()
    talk.conversation.turn("third")
    assert talk.asked[-1] == [user("first"), {"role": "assistant", "content": "5"}, user("third")]
    for _ in range(2):
        talk.conversation.forget_last()
    assert not talk.conversation.messages
    talk.conversation.forget_last()
    assert talk.said[-1] == "nothing to forget"


@pytest.mark.parametrize(
    "failure",
    [
        EngineError("too long"),
        KeyboardInterrupt(),
        Answer("hm", " "),
        Answer("", ""),
        Reply(Answer("hm", ""), None),
        Answer("", "", [ToolCall("add", "[1]")]),
        Answer("", "", [ToolCall("add", "{broken")]),
    ],
)
def test_a_turn_that_fails_is_forgotten_and_the_conversation_goes_on(failure: Any) -> None:
    talk = Talk([failure, Answer("", "5")])
    talk.conversation.turn("first")
    assert talk.said
    talk.conversation.turn("second")
    assert talk.asked[1] == [user("second")]


def test_an_answer_that_was_stopped_is_remembered_as_far_as_it_came() -> None:
    talk = Talk([Reply(Answer("", "Once upon", [ToolCall("add", "{")]), None), Answer("", "6")])
    talk.conversation.turn("first")
    talk.conversation.turn("second")
    assert talk.asked[1] == [user("first"), {"role": "assistant", "content": "Once upon"}, user("second")]


def test_the_user_types_the_results_of_parallel_calls() -> None:
    calls = [ToolCall("add", '{"a": 1}'), ToolCall("add", '{"a": 2}')]
    talk = Talk([Answer("hm", "wait", calls), Answer("", "Both are 3.")], typed=["three", ""])
    talk.conversation.settings.tools = [ADD]
    talk.conversation.turn("first")
    assert talk.prompts == ['result of add({"a": 1}): ', 'result of add({"a": 2}): ']
    assistant, *results = talk.asked[1][1:]
    assert (assistant["content"], assistant["reasoning_content"]) == ("wait", "hm")
    assert [(result["tool_call_id"], result["content"]) for result in results] == [
        (call["id"], text) for call, text in zip(assistant["tool_calls"], ["three", ""], strict=True)
    ]
    row = read_prompt(talk.asked[1], tools=[ADD], reasoning_effort="high")
    assert [call.arguments for call in row.messages[1].tool_calls] == ['{"a": 1}', '{"a": 2}']
    assert talk.conversation.messages[-1] == {"role": "assistant", "content": "Both are 3."}


@pytest.mark.parametrize("end", [KeyboardInterrupt(), EOFError()])
def test_a_result_that_is_not_given_ends_the_turn(end: BaseException) -> None:
    talk = Talk([Answer("", "", [ToolCall("add", "{}")])], typed=[end])
    talk.conversation.turn("first")
    assert not talk.conversation.messages


def test_a_model_that_only_calls_is_stopped() -> None:
    talk = Talk([Answer("", "", [ToolCall("add", "{}")])] * (MAX_ROUNDS + 1), typed=["1"] * (MAX_ROUNDS + 1))
    talk.conversation.turn("first")
    assert len(talk.asked) == MAX_ROUNDS
    assert "without an answer" in talk.said[-1]


def test_images_go_with_one_message_only(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(picture(28, 28)))
    talk = Talk([Answer("", "5"), Answer("", "6")])
    talk.conversation.images = [file, file]
    talk.conversation.turn("first")
    talk.conversation.turn("second")
    row = read_prompt(talk.asked[1], images=ImageReader())
    assert [len(message.images) for message in row.messages] == [2, 0, 0]
    assert row.messages[0].text == "first"
    talk.conversation.images = [tmp_path / "gone.png"]
    talk.conversation.turn("third")
    assert "gone.png" in talk.said[-1]


def test_a_saved_conversation_is_a_training_row(tmp_path: Path) -> None:
    talk = Talk([Answer("hm", "", [ToolCall("add", "{}")]), Answer("", "6")], typed=["1"], system=SYSTEM)
    talk.conversation.settings.tools = [ADD]
    with pytest.raises(EngineError, match="nothing to save"):
        talk.conversation.save(tmp_path / "chat.jsonl")
    talk.conversation.turn("first")
    talk.conversation.settings.mode = Mode.none  # a thought makes it a row of mode high all the same
    talk.conversation.save(tmp_path / "chat.jsonl")
    (line,) = (tmp_path / "chat.jsonl").read_text().splitlines()
    row = read_row(json.loads(line))
    assert [message.role for message in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert (row.reasoning_effort, bool(row.tools_json)) == ("high", True)
    with pytest.raises(StorageError, match="exists"):
        talk.conversation.save(tmp_path / "chat.jsonl")
    with pytest.raises(MS4Error):
        talk.conversation.save(tmp_path / "no" / "folder" / "chat.jsonl")
