"""Outside forms of rows: what is understood, and the code of everything that is refused."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rows import conversations, tool_row

from ms4_train.chat import read_prompt, read_row
from ms4_train.errors import RowError

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "r"}


def row(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


def thinking_part(value: Any) -> dict[str, Any]:
    return {"type": "thinking", "thinking": value}


BAD_ROWS: list[tuple[str, Any]] = [
    ("not-an-object", [USER, ASSISTANT]),
    ("not-an-object", None),
    ("no-messages", {}),
    ("no-messages", {"messages": []}),
    ("no-messages", {"messages": "hello"}),
    ("no-assistant", row(USER)),
    ("no-assistant", row({"role": "system", "content": "s"}, USER)),
    ("bad-role", row({"role": "human", "content": "q"}, ASSISTANT)),
    ("bad-role", row({"from": "human", "value": "q"}, ASSISTANT)),
    ("bad-role", row({"role": ["user"], "content": "q"}, ASSISTANT)),
    ("role-order", row(ASSISTANT, USER, ASSISTANT)),
    ("role-order", row(USER, USER, ASSISTANT)),
    ("role-order", row(USER, ASSISTANT, ASSISTANT)),
    ("role-order", row(USER, ASSISTANT, USER)),
    ("role-order", row(USER, {"role": "system", "content": "s"}, ASSISTANT)),
    ("role-order", row({"role": "system", "content": "s"}, ASSISTANT)),
    ("role-order", row(USER, RESULT, ASSISTANT)),
    ("role-order", row(USER, CALLING, RESULT)),
    ("bad-content", row("hello", ASSISTANT)),
    ("bad-content", row({"role": "user", "content": 5}, ASSISTANT)),
    ("bad-content", row({"role": "user", "content": ["q"]}, ASSISTANT)),
    ("bad-content", row({"role": "user", "content": [{"type": "text", "text": None}]}, ASSISTANT)),
    ("bad-content", row({"role": "user", "content": [thinking_part("t"), {"type": "text", "text": "q"}]}, ASSISTANT)),
    ("bad-content", row({**USER, "reasoning_content": "t"}, ASSISTANT)),
    ("bad-content", row({**USER, "tool_calls": [CALL]}, ASSISTANT)),
    (
        "bad-content",
        row(USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}, thinking_part("t")]}, reasoning_effort="high"),
    ),
    ("bad-content", row(USER, {"role": "assistant", "content": [thinking_part("t"), thinking_part("u")]}, reasoning_effort="high")),
    ("bad-content", row(USER, {"role": "assistant", "content": [thinking_part([{"type": "image"}])]}, reasoning_effort="high")),
    ("bad-content", row(USER, {**ASSISTANT, "reasoning": "x", "thinking": "y"}, reasoning_effort="high")),
    ("bad-content", row(USER, {**ASSISTANT, "reasoning": 3}, reasoning_effort="high")),
    ("bad-content", row(USER, {"role": "assistant", "content": [thinking_part("t")], "thinking": "t"}, reasoning_effort="high")),
    (
        "bad-content",
        row(
            USER,
            {"role": "assistant", "content": [{**thinking_part("t"), "closed": False}, {"type": "text", "text": "a"}]},
            reasoning_effort="high",
        ),
    ),
    ("empty-user", row({"role": "user", "content": " \n"}, ASSISTANT)),
    ("empty-user", row({"role": "user"}, ASSISTANT)),
    ("empty-assistant", row(USER, {"role": "assistant", "content": "  "})),
    ("empty-assistant", row(USER, {"role": "assistant", "content": None, "tool_calls": []})),
    ("empty-assistant", row(USER, {"role": "assistant", "content": "", "reasoning_content": "only thought"}, reasoning_effort="high")),
    ("unsupported-content", row({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ASSISTANT)),
    ("unsupported-field", row(USER, {**ASSISTANT, "weight": 0.5})),
    ("unsupported-field", row(USER, {**ASSISTANT, "weight": 0})),
    ("unsupported-field", row(USER, {**ASSISTANT, "weight": 0.0})),
    ("unsupported-field", row(USER, {**ASSISTANT, "train": False})),
    ("unsupported-field", row(USER, {**ASSISTANT, "trainable": False})),
    ("unsupported-field", row({**USER, "train": False}, {**ASSISTANT, "weight": 0})),
    ("unsupported-field", row(USER, {**ASSISTANT, "function_call": {"name": "f"}})),
    ("unsupported-field", row(USER, {**ASSISTANT, "prefix": True})),
    ("bad-mode", row(USER, ASSISTANT, reasoning_effort="medium")),
    ("bad-mode", row(USER, ASSISTANT, reasoning_effort=True)),
    ("thinking-in-none", row(USER, {**ASSISTANT, "reasoning_content": "t"}, reasoning_effort="none")),
    ("thinking-in-none", row(USER, {**ASSISTANT, "reasoning_content": "t"})),
    ("bad-tools", row(USER, ASSISTANT, tools={"a": 1})),
    ("bad-tool-call", row(USER, {"role": "assistant", "tool_calls": "not json"})),
    ("tool-result", row(USER, CALLING, USER, ASSISTANT)),
    ("tool-result", row(USER, CALLING, RESULT, RESULT, ASSISTANT)),
    ("tool-result", row(USER, ASSISTANT, RESULT, ASSISTANT)),
]


@pytest.mark.parametrize(("code", "bad"), BAD_ROWS)
def test_bad_rows_are_refused_with_their_code(code: str, bad: Any) -> None:
    with pytest.raises(RowError) as caught:
        read_row(bad)
    assert caught.value.row_code == code
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("field", [{"weight": 1}, {"weight": None}, {"train": True}, {"trainable": True}, {"prefix": False}])
def test_fields_that_change_nothing_pass(field: dict[str, Any]) -> None:
    assert read_row(row(USER, {**ASSISTANT, **field})) == read_row(row(USER, ASSISTANT))


def test_the_neighbours_of_bad_rows_are_good() -> None:
    # Negative control for the table above: each of these differs from a refused row in one thing.
    for good in [
        row(USER, ASSISTANT),
        row({"role": "system", "content": "s"}, {"role": "system", "content": ""}, USER, ASSISTANT),
        row(USER, CALLING, RESULT, ASSISTANT),
        row(USER, CALLING, RESULT, USER, ASSISTANT),
        row(USER, CALLING),
        row(USER, {**ASSISTANT, "reasoning_content": "t"}, reasoning_effort="high"),
        row(
            USER, {**ASSISTANT, "reasoning_content": "", "weight": None, "tool_calls": None, "name": "x"}, reasoning_effort=None, tools=None
        ),
        row({"role": "user", "content": [{"type": "text", "text": "q", "thinking": None}]}, ASSISTANT),
    ]:
        assert read_row(good).messages[-1].role == "assistant"


@pytest.mark.parametrize(
    "assistant",
    [
        {"role": "assistant", "content": [thinking_part("t"), {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [thinking_part([{"type": "text", "text": "t"}]), {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "a", "reasoning_content": "t"},
        {"role": "assistant", "content": "a", "reasoning": "t"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}], "thinking": "t"},
        {"role": "assistant", "content": "a", "reasoning": "t", "reasoning_content": "t"},
    ],
)
def test_all_forms_of_thinking_are_one(assistant: dict[str, Any]) -> None:
    message = read_row(row(USER, assistant, reasoning_effort="high")).messages[-1]
    assert (message.text, message.thinking) == ("a", "t")


def test_the_default_mode_applies_only_where_a_row_names_none() -> None:
    thoughtful = row(USER, {**ASSISTANT, "reasoning_content": "t"})
    assert read_row(thoughtful, default_effort="high").reasoning_effort == "high"
    assert read_row(row(USER, ASSISTANT, reasoning_effort="none"), default_effort="high").reasoning_effort == "none"


def test_results_are_put_into_the_order_of_their_calls() -> None:
    messages = read_row(tool_row()).messages
    assert [message.text for message in messages if message.role == "tool"] == ['{"sky": "grey"}', "12:00"]


def test_prompts_end_where_the_assistant_answers() -> None:
    assert read_prompt([USER]).messages[-1].role == "user"
    assert read_prompt([USER, CALLING, RESULT]).messages[-1].role == "tool"
    for bad in ([USER, ASSISTANT], [], [{"role": "system", "content": "s"}], None):
        with pytest.raises(RowError):
            read_prompt(bad)


def test_a_prompt_in_mode_none_may_hold_earlier_thinking() -> None:
    history = [USER, {**ASSISTANT, "reasoning_content": "t"}, USER]
    assert read_prompt(history, reasoning_effort="none").messages[1].thinking == "t"


@given(conversations())
@settings(max_examples=30, deadline=None)
def test_reading_changes_nothing_outside(conversation: dict[str, Any]) -> None:
    before = copy.deepcopy(conversation)
    read_row(conversation)
    assert conversation == before


_JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["role", "content", "type", "text", "function"]), inner)
    ),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "messages": st.one_of(
                _JUNK,
                st.lists(
                    st.fixed_dictionaries(
                        {"role": st.one_of(st.sampled_from(["system", "user", "assistant", "tool"]), _JUNK), "content": _JUNK},
                        optional={"tool_calls": _JUNK, "tool_call_id": _JUNK, "reasoning_content": _JUNK, "weight": _JUNK},
                    ),
                    max_size=4,
                ),
            ),
            "tools": _JUNK,
            "reasoning_effort": _JUNK,
        },
    )
)
@settings(max_examples=200, deadline=None)
def test_only_our_error_escapes_from_junk(junk: Any) -> None:
    with contextlib.suppress(RowError):
        read_row(junk)
