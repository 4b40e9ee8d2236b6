"""Tool definitions, calls and results."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.rows import CLOCK_TOOL, WEATHER_TOOL

from ms4_train.chat import Message, ToolCall
from ms4_train.chat.tool_fields import pair_results, read_call_id, read_tool_calls, read_tools
from ms4_train.errors import RowError


def result(call_id: str, text: str = "r") -> Message:
    return Message("tool", text, tool_call_id=call_id)


def code_of(function: Any, *arguments: Any) -> str:
    with pytest.raises(RowError) as caught:
        function(*arguments)
    return caught.value.row_code


def test_tools_as_objects_and_as_text_are_the_same() -> None:
    tools = [WEATHER_TOOL, CLOCK_TOOL]
    assert read_tools(tools) == read_tools(json.dumps(tools)) == json.dumps(tools, ensure_ascii=False)
    assert read_tools(None) == read_tools([]) == read_tools("") == read_tools("[]") == ""


@pytest.mark.parametrize(
    "tools",
    [
        "no json",
        "{}",
        5,
        [5],
        [{"type": "function"}],
        [{"type": "web_search", "function": {"name": "f", "parameters": {}}}],
        [{"type": "function", "function": {"name": "has space", "parameters": {}}}],
        [{"type": "function", "function": {"parameters": {}}}],
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "no-such-type"}}}],
        [{"type": "function", "function": {"name": "f", "parameters": [1]}}],
        [CLOCK_TOOL, CLOCK_TOOL],
        [{"type": "function", "function": {"name": "f", "parameters": {}, "description": b"bytes"}}],
        [{"type": "function", "function": {"name": "f", "parameters": {"default": float("nan")}}}],
    ],
)
def test_bad_tools(tools: Any) -> None:
    assert code_of(read_tools, tools) == "bad-tools"


def test_arguments_are_respelled_as_mistral_common_does() -> None:
    calls = read_tool_calls(
        [
            {"id": "1", "function": {"name": "f", "arguments": '{"city":"K\\u00f6ln",  "x":1.50}'}},
            {"id": "2", "function": {"name": "f", "arguments": {"city": "Köln"}}},
            {"function": {"name": "f", "arguments": None}},
            {"id": "null", "function": {"name": "f"}},
        ],
        "k",
    )
    assert [call.arguments for call in calls] == ['{"city": "Köln", "x": 1.5}', '{"city": "Köln"}', "{}", "{}"]
    assert [call.id for call in calls] == ["1", "2", "", ""]


@pytest.mark.parametrize(
    "calls",
    [
        "no json",
        {"function": {}},
        [5],
        [{"name": "f"}],
        [{"function": {"name": "a b"}}],
        [{"function": {"name": 3}}],
        [{"function": {"name": "f", "arguments": "[1]"}}],
        [{"function": {"name": "f", "arguments": '{"a": NaN}'}}],
        [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}],
        [{"function": {"name": "f", "arguments": {"a": float("inf")}}}],
        [{"function": {"name": "f", "arguments": {"a": {1, 2}}}}],
        [{"id": 7, "function": {"name": "f"}}],
        [{"id": "x", "function": {"name": "f"}}, {"id": "x", "function": {"name": "g"}}],
    ],
)
def test_bad_calls(calls: Any) -> None:
    assert code_of(read_tool_calls, calls, "k") == "bad-tool-call"


def test_call_ids() -> None:
    assert (read_call_id(None, "k"), read_call_id("null", "k"), read_call_id("x", "k")) == ("", "", "x")
    assert code_of(read_call_id, 3, "k") == "bad-tool-call"


def test_results_without_ids_belong_to_calls_by_position() -> None:
    calls, results = pair_results((ToolCall("f", "{}"), ToolCall("g", "{}")), [result("", "first"), result("", "second")], "k")
    assert [(call.name, answer.text) for call, answer in zip(calls, results, strict=True)] == [("f", "first"), ("g", "second")]
    assert all(call.id == answer.tool_call_id != "" for call, answer in zip(calls, results, strict=True))


def test_results_that_do_not_fit_their_calls() -> None:
    calls = (ToolCall("f", "{}", "a"), ToolCall("g", "{}", "b"))
    for results in ([result("a")], [result("a"), result("c")], [result("a"), result("a")], [result("a"), result("")]):
        assert code_of(pair_results, calls, results, "k") == "tool-result"
    assert code_of(pair_results, (), [result("a")], "k") == "tool-result"
    assert code_of(pair_results, (ToolCall("f", "{}"), ToolCall("g", "{}", "b")), [], "k") == "bad-tool-call"
    assert code_of(pair_results, (ToolCall("f", "{}"),), [result("a")], "k") == "bad-tool-call"
    assert [answer.tool_call_id for answer in pair_results(calls, [result("b"), result("a")], "k")[1]] == ["a", "b"]
