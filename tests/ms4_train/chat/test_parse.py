"""Answers parsed by token id, whatever a model writes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.rows import conversations
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import Answer, ToolCall, parse_answer, read_row


def ids_of(*pieces: str | int) -> list[int]:
    out: list[int] = []
    for piece in pieces:
        out += [piece] if isinstance(piece, int) else tiny_tokenizer().encode_text(piece)
    return out


THINK, END_THINK, CALLS, ARGS, EOS = (
    tiny_tokenizer().think_id,
    tiny_tokenizer().end_think_id,
    tiny_tokenizer().ids.tool_calls,
    tiny_tokenizer().ids.args,
    tiny_tokenizer().eos_id,
)


def parse(*pieces: str | int) -> Answer:
    return parse_answer(ids_of(*pieces), tiny_tokenizer())


def test_thinking_and_answer() -> None:
    answer = parse(THINK, "hm 日本", END_THINK, "forty-two", EOS)
    assert (answer.thinking, answer.content, answer.thinking_state) == ("hm 日本", "forty-two", "closed")
    assert answer.thinking_tokens == len(ids_of("hm 日本"))
    assert answer.content_tokens == len(ids_of("forty-two"))


def test_answer_alone_and_nothing_at_all() -> None:
    assert parse("42") == Answer("", "42", content_tokens=2)
    assert parse() == Answer("", "")
    assert parse(EOS, "after the end") == Answer("", "")


def test_unterminated_thought_has_no_answer() -> None:
    answer = parse(THINK, "still going")
    assert (answer.thinking, answer.content, answer.thinking_state) == ("still going", "", "unterminated")


def test_stray_closing_tag_is_dropped() -> None:
    answer = parse("before", END_THINK, "after", EOS)
    assert (answer.content, answer.thinking_state) == ("beforeafter", "none")


def test_spelled_tags_are_text() -> None:
    answer = parse("[THINK]no[/THINK]", EOS)
    assert (answer.content, answer.thinking, answer.thinking_state) == ("[THINK]no[/THINK]", "", "none")


def test_tool_calls() -> None:
    answer = parse(THINK, "t", END_THINK, "text", CALLS, "f", ARGS, '{"a": 1}', CALLS, "g", ARGS, "{broken", EOS)
    assert answer.tool_calls == [ToolCall("f", '{"a": 1}'), ToolCall("g", "{broken")]
    assert answer.content == "text"
    assert answer.tool_calls[0].parsed() == {"a": 1}
    assert answer.tool_call_tokens == len(ids_of("f", '{"a": 1}', "g", "{broken"))


def test_a_call_ends_a_thought() -> None:
    answer = parse(THINK, "t", CALLS, "f", ARGS, "{}")
    assert (answer.thinking, answer.thinking_state, answer.tool_calls) == ("t", "closed", [ToolCall("f", "{}")])


def test_a_call_without_arguments_and_arguments_without_a_call() -> None:
    assert parse(CALLS, "f").tool_calls == [ToolCall("f", "")]
    assert parse("a", ARGS, "b").content == "ab"


@given(conversations())
@settings(max_examples=40, deadline=None)
def test_parsing_undoes_encoding(conversation: dict[str, Any]) -> None:
    row = read_row(conversation)
    encoded = tiny_tokenizer().encode_row(row)
    last = row.messages[-1]
    start = min(span.start for span in encoded.spans if span.trained and span.stop > last_prompt_token(encoded.token_ids))
    answer = parse_answer(encoded.token_ids[start:], tiny_tokenizer())
    assert answer.thinking == (last.thinking or "")
    assert answer.content == (last.text.rstrip(" ") if last.thinking is None else last.text)
    assert answer.thinking_state == ("none" if last.thinking is None else "closed")


def last_prompt_token(token_ids: list[int]) -> int:
    ends = {tiny_tokenizer().ids.end_inst, tiny_tokenizer().ids.end_tool_results}
    return max(index for index, token in enumerate(token_ids) if token in ends)


@given(st.lists(st.integers(0, tiny_tokenizer().vocab_size + 3), max_size=20))
@settings(max_examples=150, deadline=None)
def test_any_tokens_give_an_answer(token_ids: list[int]) -> None:
    answer = parse_answer(token_ids, tiny_tokenizer())
    assert answer.thinking_tokens + answer.content_tokens + answer.tool_call_tokens <= len(token_ids)
    assert (answer.thinking_state == "none") == (THINK not in token_ids[: token_ids.index(EOS) if EOS in token_ids else None])
