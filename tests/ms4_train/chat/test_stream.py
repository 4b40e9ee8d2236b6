"""Deltas of an answer: together they are what ``parse_answer`` finds in all its tokens, and each comes as soon as it is certain."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import Answer, AnswerStream, ToolCall, parse_answer
from ms4_train.chat.stream import ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallStart

TOKENIZER = tiny_tokenizer()
THINK, END_THINK, CALLS, ARGS, EOS = (
    TOKENIZER.think_id,
    TOKENIZER.end_think_id,
    TOKENIZER.ids.tool_calls,
    TOKENIZER.ids.args,
    TOKENIZER.eos_id,
)


def stream(*pieces: str | int) -> tuple[AnswerStream, list[list[Delta]]]:
    """A stream that has ended, and its deltas after each token and at the end."""
    found = AnswerStream(TOKENIZER)
    ids = [token_id for piece in pieces for token_id in ([piece] if isinstance(piece, int) else TOKENIZER.encode_text(piece))]
    return found, [*(found.push(token_id) for token_id in ids), found.finish()]


def flat(steps: list[list[Delta]]) -> list[Delta]:
    return [delta for step in steps for delta in step]


def joined(deltas: list[Delta]) -> Answer:
    """What a client makes of the deltas."""
    thinking, content = "", ""
    calls: list[ToolCall] = []
    for delta in deltas:
        if isinstance(delta, ReasoningDelta):
            thinking += delta.text
        elif isinstance(delta, ContentDelta):
            content += delta.text
        elif isinstance(delta, ToolCallStart):
            assert delta.index == len(calls)
            calls.append(ToolCall(delta.name, ""))
        else:
            calls[delta.index] = ToolCall(calls[delta.index].name, calls[delta.index].arguments + delta.text)
    return Answer(thinking, content, calls)


def test_thought_answer_and_parallel_calls_come_in_order() -> None:
    found, steps = stream(THINK, "so", END_THINK, "ok", CALLS, "add", ARGS, '{"a": 1}', CALLS, "mul", ARGS, "{}", EOS)
    deltas = flat(steps)
    kinds = [type(delta) for delta in deltas]
    assert list(dict.fromkeys(kinds)) == [ReasoningDelta, ContentDelta, ToolCallStart, ToolCallArguments]
    assert (joined(deltas).thinking, joined(deltas).content) == ("so", "ok")
    starts = [delta for delta in deltas if isinstance(delta, ToolCallStart)]
    assert starts == [ToolCallStart(0, "add"), ToolCallStart(1, "mul")]
    assert joined(deltas).tool_calls == [ToolCall("add", '{"a": 1}'), ToolCall("mul", "{}")]
    assert (found.thinking_tokens, found.thinking_state) == (len(TOKENIZER.encode_text("so")), "closed")
    assert not steps[-1], "everything was certain before the end"


def test_a_name_comes_whole_when_its_arguments_begin() -> None:
    _, steps = stream(CALLS, "my_calculator", ARGS, "{")
    name_tokens = len(TOKENIZER.encode_text("my_calculator"))
    assert name_tokens > 1
    assert not flat(steps[: 1 + name_tokens])
    assert steps[1 + name_tokens] == [ToolCallStart(0, "my_calculator")]
    assert steps[2 + name_tokens] == [ToolCallArguments(0, "{")]


def test_a_character_comes_when_its_last_byte_does() -> None:
    ids = TOKENIZER.encode_text("世")
    assert len(ids) > 1
    _, steps = stream(*ids)
    assert [len(step) for step in steps] == [0] * (len(ids) - 1) + [1, 0]
    assert flat(steps) == [ContentDelta("世")]
    _, steps = stream(*ids[:-1])
    assert steps[-1] == [ContentDelta("\ufffd")]


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        ((CALLS, "add"), [ToolCall("add", "")]),
        ((CALLS, "add", CALLS, "mul", ARGS, "{}"), [ToolCall("add", ""), ToolCall("mul", "{}")]),
        ((CALLS, "add", THINK, "hm"), [ToolCall("add", "")]),
        ((CALLS, "add", EOS, "late"), [ToolCall("add", "")]),
        ((THINK, "hm", CALLS, "add", ARGS, "{}"), [ToolCall("add", "{}")]),
    ],
)
def test_broken_calls_are_given_as_they_are(pieces: tuple[str | int, ...], calls: list[ToolCall]) -> None:
    _, steps = stream(*pieces)
    assert joined(flat(steps)).tool_calls == calls


# Tags often, bytes that begin or end characters often, any other token, and ids past the vocabulary.
_TOKENS = st.one_of(
    st.sampled_from([THINK, END_THINK, CALLS, ARGS]),
    st.sampled_from([TOKENIZER.num_special_tokens + byte for byte in (0xE4, 0xB8, 0x96, 0xF0, 0x9F, 0xC3, 0xFF)]),
    st.integers(0, TOKENIZER.vocab_size + 3),
)


@given(st.lists(_TOKENS, max_size=40))
@settings(max_examples=300, deadline=None)
def test_joined_deltas_are_the_parsed_answer_at_any_point(token_ids: list[int]) -> None:
    found, steps = stream(*token_ids)
    deltas = flat(steps)
    whole = parse_answer(token_ids, TOKENIZER)
    assert found.answer == whole
    assert found.thinking_tokens == whole.thinking_tokens
    told = joined(deltas)
    assert (told.thinking, told.content, told.tool_calls) == (whole.thinking, whole.content, whole.tool_calls)
    assert all(isinstance(delta, ToolCallStart) or delta.text for delta in deltas)


def test_decoding_each_token_by_itself_would_break_characters() -> None:
    """The negative control of the property: what a stream without memory of bytes would spell."""
    ids = TOKENIZER.encode_text("世")
    assert "".join(TOKENIZER.decode([token_id]) for token_id in ids) != parse_answer(ids, TOKENIZER).content
