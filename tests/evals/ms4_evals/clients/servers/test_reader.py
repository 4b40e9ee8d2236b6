"""Every form of a reply, whole and cut anywhere; then the recorded replies of real servers."""

from __future__ import annotations

import pytest
from support.recorded_replies import all_names, deltas, load, message

from ms4_evals.clients.servers.kinds import KINDS
from ms4_evals.clients.servers.reader import AnswerReader

THOUGHT, ANSWER = "2+1 is [3]", "\\boxed{3}\n"
LIST = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "2+1 "}, {"type": "text", "text": "is [3]"}]},
    {"type": "text", "text": ANSWER},
]
FORMS = {
    "reasoning": {"reasoning": THOUGHT, "content": ANSWER},
    "reasoning_content": {"role": "assistant", "reasoning_content": THOUGHT, "content": ANSWER, "tool_calls": None},
    "both names": {"reasoning_content": THOUGHT, "reasoning": THOUGHT, "content": ANSWER},
    "list": {"content": LIST},
    "list, closed": {"content": [{**LIST[0], "closed": True}, LIST[1]]},
    "list, plain text": {"content": [{"type": "thinking", "thinking": THOUGHT}, LIST[1]]},
    "list and field": {"reasoning": THOUGHT, "content": LIST[1:]},
    "mistral tags": {"content": f"[THINK]{THOUGHT}[/THINK]{ANSWER}"},
    "think tags": {"content": f"<think>{THOUGHT}</think>{ANSWER}"},
}
NO_THINKING = {
    "text": {"content": ANSWER},
    "null reasoning": {"content": ANSWER, "reasoning": None, "reasoning_content": ""},
    "list": {"content": [{"type": "text", "text": ANSWER}]},
    "mention": {"content": f"{ANSWER} after [THINK] and [/THINK]"},
}
OPEN = {
    "reasoning": {"reasoning": THOUGHT, "content": None},
    "reasoning_content": {"reasoning_content": THOUGHT},
    "list": {"content": LIST[:1]},
    "tags": {"content": f"[THINK]{THOUGHT}"},
}


def read(message):
    reader = AnswerReader()
    reader.feed_message(message)
    return reader.thinking, reader.answer, reader.thinking_is_open


def cut(message):
    """The message as the longest stream there is: every text, wherever it stands, letter by letter, in the order of the fields."""
    for name, value in message.items():
        if isinstance(value, str):
            yield from ({name: letter} for letter in value)
        elif name == "content" and value:
            for part in value:
                if part["type"] == "text":
                    yield from ({"content": [{"type": "text", "text": letter}]} for letter in part["text"])
                else:
                    inner = part["thinking"]
                    letters = inner if isinstance(inner, str) else "".join(piece["text"] for piece in inner)
                    yield from ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": letter}]}]} for letter in letters)
        else:
            yield {name: value}


def read_cut(message):
    reader = AnswerReader()
    for delta in cut(message):
        reader.feed_delta(delta)
    return reader.thinking, reader.answer, reader.thinking_is_open


# No stream sends one name after the other.
@pytest.mark.parametrize(
    ("how", "name"), [(how, name) for how in (read, read_cut) for name in FORMS if (how, name) != (read_cut, "both names")]
)
def test_thinking_and_answer(how, name):
    assert how({key: value for key, value in FORMS[name].items() if key != "role"}) == (THOUGHT, ANSWER, False)


@pytest.mark.parametrize("name", NO_THINKING)
@pytest.mark.parametrize("how", [read, read_cut])
def test_no_thinking(how, name):
    content = NO_THINKING[name]["content"]
    assert how(NO_THINKING[name]) == ("", content if isinstance(content, str) else ANSWER, False)


@pytest.mark.parametrize("name", OPEN)
@pytest.mark.parametrize("how", [read, read_cut])
def test_thinking_that_never_closed(how, name):
    assert how(OPEN[name]) == (THOUGHT, "", True)


def test_two_names_in_every_delta_are_one_thought():
    reader = AnswerReader()
    for letter in THOUGHT:
        reader.feed_delta({"reasoning_content": letter, "reasoning": letter})
    assert reader.thinking == THOUGHT


def test_parts_can_be_asked_for_at_any_time():
    reader = AnswerReader()
    seen = []
    for letter in f"[THINK]{THOUGHT}[/THINK]{ANSWER}":
        reader.feed_delta({"content": letter})
        seen.append((reader.thinking, reader.answer))
    assert seen[0] == ("", "[")
    assert seen[len("[THINK]") - 1] == ("", "")
    assert seen[-1] == (THOUGHT, ANSWER)


def test_servers_that_go_by_token_may_write_tags_as_text():
    text = "[THINK] is how models begin [/THINK]"
    for name, kind in KINDS.items():
        reader = kind.reader()
        reader.feed_message({"content": text})
        expected = ("", text) if name in {"ms4", "mistral"} else (" is how models begin ", "")
        assert (reader.thinking, reader.answer) == expected, name


def test_told_thinking_leaves_the_content_alone():
    assert read({"reasoning": "a", "content": "[THINK]b[/THINK]c"}) == ("a", "[THINK]b[/THINK]c", False)


@pytest.mark.parametrize(
    "bad",
    [
        {"content": 3},
        {"content": {"text": "a"}},
        {"content": ["a"]},
        {"content": [{"type": "image_url"}]},
        {"content": [{"type": "text", "text": None}]},
        {"content": [{"type": "thinking", "thinking": 3}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "reference", "reference_ids": [1]}]}]},
        {"reasoning": ["a"]},
        {"reasoning_content": {"text": "a"}},
    ],
)
def test_what_no_server_sends_is_refused_whole(bad):
    reader = AnswerReader()
    reader.feed_delta({"content": "before"})
    with pytest.raises(ValueError, match=r"content|reasoning"):
        reader.feed_delta({"reasoning": "thought", **bad})
    assert (reader.thinking, reader.answer) == ("", "before")


def recorded():
    for name in all_names():
        for number, case in enumerate(load(name).cases):
            yield pytest.param(load(name).kind, case, id=f"{name}-{number}-{case.mode}-{'stream' if case.stream else 'whole'}")


@pytest.mark.parametrize(("kind", "case"), recorded())
def test_recorded_replies_of_real_servers(kind, case):
    reader = KINDS[kind].reader()
    if case.stream:
        for delta in deltas(case.reply):
            reader.feed_delta(delta)
    else:
        reader.feed_message(message(case.reply))
    assert (reader.thinking, reader.answer) == (case.thinking, case.answer)
    assert reader.thinking_is_open == (case.mode == "high" and case.finish_reason == "length")
    assert f'"finish_reason":"{case.finish_reason}"' in case.reply


def test_recordings_cover_both_modes_streamed_and_whole_and_a_cut_thought():
    assert set(all_names()) == {"llama_cpp", "ms4", "transformers", "vllm_parser", "vllm_plain"}
    for name in set(all_names()) - {"llama_cpp"}:
        cases = {(case.mode, case.stream, case.finish_reason) for case in load(name).cases}
        assert cases == {(mode, stream, "stop") for mode in ("none", "high") for stream in (True, False)} | {
            ("high", stream, "length") for stream in (True, False)
        }
