"""Data sets, lengths, packing and masks."""

from __future__ import annotations

import pytest

from ms4_train.config.importing.axolotl_data import translate_data
from ms4_train.config.importing.draft import Draft
from ms4_train.config.nodes import to_document
from ms4_train.untrusted import parse_yaml


def data_of(text):
    draft = Draft(to_document(parse_yaml(text), file="a.yml"))
    translate_data(draft)
    return draft, draft.run["data"]


def words(draft):
    return " ".join([*(f"{entry.source}: {entry.words}" for entry in draft.entries), *draft.warnings])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{path: a/b, type: chat_template, split: x, name: en, revision: y}", {"path": "a/b", "split": "x", "name": "en", "revision": "y"}),
        ("{path: rows.jsonl, split: train}", {"path": "rows.jsonl"}),
        ("{path: json, data_files: [rows.jsonl], ds_type: json}", {"path": "rows.jsonl"}),
        ("{path: a.jsonl, field_messages: talk, field_tools: fs}", {"path": "a.jsonl", "fields": {"messages": "talk", "tools": "fs"}}),
        ("{path: a.jsonl, chat_template_kwargs: {reasoning_effort: high}}", {"path": "a.jsonl", "reasoning_effort": "high"}),
        ("{path: org/set, streaming: true}", {"path": "org/set", "streaming": True}),
    ],
)
def test_sources(source, expected):
    _, data = data_of(f"datasets: [{source}]")
    assert data["train"] == [expected]


def test_several_sources_and_validation_files():
    _, data = data_of("datasets: [{path: a.jsonl}, {path: b.jsonl}]\ntest_datasets: [{path: c.jsonl}]\nval_set_size: 0")
    assert data["train"] == [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    assert data["validation"] == [{"path": "c.jsonl"}]
    assert data["validation_fraction"] == 0.0


def test_a_mode_for_all_sources():
    draft, data = data_of("datasets: [{path: a.jsonl}, {path: b.jsonl}]\nchat_template_kwargs: {reasoning_effort: none, other: 1}")
    assert [source["reasoning_effort"] for source in data["train"]] == ["none", "none"]
    assert "chat_template_kwargs.other: the model's own format has no such setting" in words(draft)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets: [{path: a.jsonl, type: alpaca}]", "'alpaca' rows are not read"),
        ("datasets: [{path: a.jsonl, type: {field_instruction: x}}]", "rows are not read"),
        ("datasets: [{path: a.jsonl, type: chat_template, roles_to_train: [assistant, user]}]", "assistant, user were trained there"),
        ("datasets: [{path: a.jsonl, type: chat_template, train_on_eos: all}]", "'all' there"),
        ("datasets: [{path: a.jsonl, type: chat_template, message_property_mappings: {role: from}}]", "role lies under from"),
        ("datasets: [{path: a.jsonl, type: chat_template, chat_template_kwargs: {reasoning_effort: low}}]", "not a mode of this model"),
        ("train_on_inputs: true", "user and system text carried loss there"),
        ("val_set_size: 200", "nothing is held out"),
        ("excess_length_strategy: truncate", "not cut"),
        ("sample_packing: true\nflash_attention: true", "packed documents appear to see each other"),
    ],
)
def test_what_differs_is_said(text, said):
    assert said in words(data_of(text)[0])


@pytest.mark.parametrize(
    "text",
    [
        "datasets: [{path: a.jsonl, type: chat_template, roles_to_train: [assistant], train_on_eos: turn, "
        "message_property_mappings: {role: role, content: content, thinking: thinking}}]\nexcess_length_strategy: raise",
        "excess_length_strategy: raise\nsample_packing: true\nattn_implementation: sdpa",
    ],
)
def test_control_what_does_not_differ_is_not(text):
    assert data_of(text)[0].warnings == []


@pytest.mark.parametrize(
    ("text", "expected"), [("", "skip"), ("excess_length_strategy: drop", "skip"), ("excess_length_strategy: raise", "error")]
)
def test_rows_that_are_too_long(text, expected):
    assert data_of(text)[1]["overlong_rows"] == expected
