"""What reaches the terminal, with and without colours."""

from __future__ import annotations

import io

from rich.console import Console
from support.tokenizers import tiny_tokenizer

from ms4_train.cli.answer_printer import AnswerPrinter


def print_ids(ids: list[int], *, terminal: bool) -> str:
    out = io.StringIO()
    printer = AnswerPrinter(tiny_tokenizer(), Console(file=out, force_terminal=terminal, color_system="standard" if terminal else None))
    for token_id in ids:
        printer.push(token_id)
    printer.finish()
    return out.getvalue()


def thought() -> list[int]:
    tokenizer = tiny_tokenizer()
    return [tokenizer.think_id, *tokenizer.encode_text("so [b]½[/b] :smile:"), tokenizer.end_think_id, *tokenizer.encode_text("5 世")]


def test_thinking_stands_between_tags_where_nothing_can_be_dimmed() -> None:
    assert print_ids(thought(), terminal=False) == "[THINK]so [b]½[/b] :smile:[/THINK]\n5 世\n"


def test_thinking_is_dimmed_on_a_terminal_and_the_answer_is_not() -> None:
    text = print_ids(thought(), terminal=True)
    thinking, _, answer = text.partition("\n\n")
    assert "THINK" not in text
    assert thinking.count("\x1b[2m") > 0
    assert "\x1b[2m" not in answer.removeprefix("\x1b[0m")
    assert answer.removeprefix("\x1b[0m") == "5 世\n"


def test_a_model_cannot_steer_the_terminal() -> None:
    ids = tiny_tokenizer().encode_text("a\x1b[2Jb\x07\x9b31mc\td\n")
    assert print_ids(ids, terminal=True) == "a[2Jb31mc\td\n\n"


def test_control_tokens_are_spelled_and_unfinished_characters_shown() -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.ids.begin_inst, *tokenizer.encode_text("add"), tokenizer.encode_text("世")[0]]
    assert print_ids(ids, terminal=False) == "[INST]add\ufffd\n"


def test_calls_stand_on_lines_of_their_own_on_a_terminal_and_between_tags_elsewhere() -> None:
    tokenizer = tiny_tokenizer()
    call = [tokenizer.ids.tool_calls, *tokenizer.encode_text("add"), tokenizer.ids.args, *tokenizer.encode_text("{}")]
    assert print_ids([*call, *call], terminal=False) == "[TOOL_CALLS]add[ARGS]{}[TOOL_CALLS]add[ARGS]{}\n"
    assert print_ids([*call, *call], terminal=True) == "\n-> add {}\n-> add {}\n"
    thinking, _, shown = print_ids([tokenizer.think_id, *tokenizer.encode_text("hm"), *call], terminal=True).partition("\n-> ")
    assert "\x1b[2m" in thinking
    assert "\x1b[2m" not in shown, "a call ends a thought"
