"""Chat rows for tests: small builders, and a hypothesis strategy that draws whole valid conversations.

Texts of the strategy spell control tags, end in spaces, and mix scripts, because those are what encoders get wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city, e.g. Köln",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
    },
}
CLOCK_TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}, "strict": True}}


def chat(user: str, answer: str, *, thinking: str | None = None, system: str | None = None) -> dict[str, Any]:
    """A row of one turn; with ``thinking`` its mode is high."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if thinking is not None:
        messages[-1]["content"] = [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": answer}]
    return {"messages": messages, "reasoning_effort": "none" if thinking is None else "high"}


def tool_row() -> dict[str, Any]:
    """Two calls in one turn with results in the other order, thinking before them, and a second user turn."""
    calls = [
        {"id": "aaaaaaaaa", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}},
        {"id": "bbbbbbbbb", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
    ]
    return {
        "messages": [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": "Weather and time?"},
            {"role": "assistant", "content": "Looking.", "reasoning_content": "I need both tools.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "bbbbbbbbb", "content": "12:00"},
            {"role": "tool", "tool_call_id": "aaaaaaaaa", "content": '{"sky": "grey"}'},
            {"role": "assistant", "content": "Grey, noon. "},
            {"role": "user", "content": "Thanks"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "polite"}, {"type": "text", "text": "Welcome. "}]},
        ],
        "tools": [WEATHER_TOOL, CLOCK_TOOL],
        "reasoning_effort": "high",
    }


def arithmetic_rows(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Distinct rows of different lengths, alternating between the modes."""
    rows = []
    for number in range(first, first + count):
        thinking = " ".join(f"{number}+{step}={number + step}" for step in range(number % 7 + 1)) if number % 2 else None
        rows.append(chat(f"What is {number}+{number % 7}?", str(number + number % 7), thinking=thinking))
    return rows


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """JSON lines; a ``str`` is written as it stands, to plant broken lines."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


_PIECES = st.sampled_from(
    [
        "[THINK]",
        "[/THINK]",
        "</s>",
        "[INST]",
        "[TOOL_CALLS]",
        "[ARGS]",
        " ",
        "  ",
        "\n\n",
        "12",
        "é",
        "日本",
        "😀",
        "\t",
        '{"a": 1}',
        "word",
        "\x00",
    ]
)
texts = st.lists(st.one_of(_PIECES, st.text(max_size=6)), min_size=0, max_size=5).map("".join)
full_texts = texts.filter(lambda text: bool(text.strip()))
_ARGUMENTS = st.dictionaries(
    st.text(max_size=4),
    st.one_of(st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False), texts, st.none(), st.booleans()),
    max_size=3,
)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """A valid row: system messages, turns with thinking, tool calls with shuffled results."""
    effort = draw(st.sampled_from(["none", "high"]))
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(texts)} for _ in range(draw(st.integers(0, 2)))]
    counter = 0
    turns = draw(st.integers(1, 3))
    for turn in range(turns):
        messages.append({"role": "user", "content": _content(draw, draw(full_texts))})
        for _ in range(draw(st.integers(0, 2))):
            calls = []
            for _ in range(draw(st.integers(1, 3))):
                arguments = draw(_ARGUMENTS)
                counter += 1
                function = {
                    "name": draw(st.sampled_from(["f", "get-x_1"])),
                    "arguments": draw(st.sampled_from([arguments, json.dumps(arguments)])),
                }
                calls.append({"id": f"id{counter}", "type": "function", "function": function})
            messages.append({**_assistant(draw, effort, draw(texts)), "tool_calls": calls})
            results = [{"role": "tool", "tool_call_id": call["id"], "content": _content(draw, draw(texts))} for call in calls]
            messages += draw(st.permutations(results))
        if turn < turns - 1 or draw(st.booleans()) or messages[-1]["role"] != "assistant":
            messages.append(_assistant(draw, effort, draw(full_texts)))
    tools = draw(st.sampled_from([None, [WEATHER_TOOL], [CLOCK_TOOL, WEATHER_TOOL], json.dumps([WEATHER_TOOL])]))
    return {"messages": messages, "tools": tools, "reasoning_effort": effort}


def _content(draw: st.DrawFn, text: str) -> Any:
    """``text`` as it is, or cut into text parts."""
    cut = draw(st.integers(0, len(text)))
    parts = [{"type": "text", "text": text[:cut]}, {"type": "text", "text": text[cut:]}]
    return draw(st.sampled_from([text, parts]))


def _assistant(draw: st.DrawFn, effort: str, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _content(draw, text)}
    if effort == "high" and draw(st.booleans()):
        thinking = draw(texts)
        if draw(st.booleans()):
            message["content"] = [{"type": "thinking", "thinking": draw(st.sampled_from([thinking, [{"type": "text", "text": thinking}]]))}]
            message["content"] += [{"type": "text", "text": text}] if text else []
        else:
            message[draw(st.sampled_from(["reasoning_content", "reasoning", "thinking"]))] = thinking
    return message
