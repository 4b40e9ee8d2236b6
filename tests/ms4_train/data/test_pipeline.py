"""One row's way: mapping, defaults, limits, oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rows import chat
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import ChatTokenizer, EncodedRow
from ms4_train.config.schema import DataSection, DatasetSource, FieldMap
from ms4_train.data.pipeline import Outcome, RowPipeline, to_document
from ms4_train.data.rows import OVERLONG, RawRow
from ms4_train.errors import DataError, UntrustedInputError

VALUES = {"system_prompt_name": "Mini", "system_prompt_date": "2025-05-06"}


def process(
    value: Any, *, max_length: int = 500, tokenizer: ChatTokenizer | None = None, values: dict[str, str] | None = None, **fields: Any
) -> Outcome:
    source = DatasetSource(path="a.jsonl", **fields)
    pipeline = RowPipeline(source, DataSection(train=[source], max_length=max_length, **(values or {})), tokenizer or tiny_tokenizer())
    return pipeline.process(RawRow("a.jsonl", 1, value))


def text_of(outcome: Outcome) -> str:
    assert outcome.encoded is not None
    return tiny_tokenizer().decode(outcome.encoded.token_ids, keep_special=True)


def test_columns_under_other_names() -> None:
    row = chat("q", "a")
    value = {"conversation": row["messages"], "functions": None, "mode": "high", "persona": "Be kind.", "messages": "other"}
    fields = FieldMap(messages="conversation", tools="functions", reasoning_effort="mode", system_prompt="persona")
    outcome = process(value, fields=fields)
    assert text_of(outcome).startswith('<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT][MODEL_SETTINGS]{"reasoning_effort": "high"}')


def test_a_missing_column_is_named() -> None:
    outcome = process({"conversation": [], "id": 3})
    assert outcome.fault is not None
    assert outcome.fault.code == "no-messages"
    assert "'conversation', 'id'" in outcome.fault.message


def test_defaults_fill_only_what_a_row_leaves_open() -> None:
    bare = {"messages": chat("q", "a")["messages"]}
    filled = process(bare, reasoning_effort="high", system_prompt="Default.")
    assert text_of(filled).startswith('<s>[SYSTEM_PROMPT]Default.[/SYSTEM_PROMPT][MODEL_SETTINGS]{"reasoning_effort": "high"}')
    own = process(chat("q", "a", system="Own."), reasoning_effort="high", system_prompt="Default.")
    assert text_of(own).startswith('<s>[SYSTEM_PROMPT]Own.[/SYSTEM_PROMPT][MODEL_SETTINGS]{"reasoning_effort": "none"}')


def test_a_system_prompt_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("You are {name}.\nToday is {today}.\n")
    outcome = process(chat("q", "a"), system_prompt=str(tmp_path / "prompt.txt"), values=VALUES)
    assert "[SYSTEM_PROMPT]You are Mini.\nToday is 2025-05-06.[/SYSTEM_PROMPT]" in text_of(outcome)
    with pytest.raises(UntrustedInputError, match="no such file"):
        process(chat("q", "a"), system_prompt=str(tmp_path / "none.txt"))


def test_dates_are_never_made_up() -> None:
    with pytest.raises(DataError, match=r"data.system_prompt_date: .* names a date"):
        process(chat("q", "a"), system_prompt="Today is {today}.")
    with pytest.raises(DataError, match="2025-02-30 is no date"):
        process(chat("q", "a"), system_prompt="Today is {today}.", values={"system_prompt_date": "2025-02-30"})
    named = process(chat("q", "a"), system_prompt="You are {name}.")  # a name needs no date
    assert "[SYSTEM_PROMPT]You are Mistral-Small-4-119B-2603.[/SYSTEM_PROMPT]" in text_of(named)


def test_too_long_rows() -> None:
    length = len(process(chat("q", "a")).encoded.token_ids)  # pyright: ignore[reportOptionalMemberAccess]
    assert process(chat("q", "a"), max_length=length).fault is None
    fault = process(chat("q", "a"), max_length=length - 1).fault
    assert fault is not None
    assert fault.code == OVERLONG


def test_faults_are_outcomes() -> None:
    for value, code in ((UntrustedInputError("x"), "bad-json"), ([1], "not-an-object"), ({"messages": []}, "no-messages")):
        outcome = process(value)
        assert outcome.fault is not None
        assert (outcome.fault.code, outcome.encoded) == (code, None)


def test_form_can_be_checked_without_a_tokenizer() -> None:
    source = DatasetSource(path="a.jsonl")
    pipeline = RowPipeline(source, DataSection(train=[source]), None)
    assert pipeline.process(RawRow("a.jsonl", 1, chat("q", "a"))).row is not None
    assert pipeline.process(RawRow("a.jsonl", 2, {})).fault is not None


def test_a_wrong_encoding_is_caught_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    # Negative control of the check against mistral-common: an encoder that drops one token must not pass.
    right = tiny_tokenizer().encode_row

    def wrong(row: Any, **options: Any) -> EncodedRow:
        encoded = right(row, **options)
        return EncodedRow(encoded.token_ids[:-1], encoded.loss_mask[:-1], encoded.spans)

    monkeypatch.setattr(tiny_tokenizer(), "encode_row", wrong)
    with pytest.raises(AssertionError, match="mistral-common"):
        process(chat("q", "a"))


def test_documents_keep_ids_and_mask() -> None:
    encoded = process(chat("q", "a")).encoded
    assert encoded is not None
    document = to_document(RawRow("a.jsonl", 9, None), encoded)
    assert document.row_id == "a.jsonl:9"
    assert (document.token_ids_t.tolist(), document.loss_mask_t.tolist()) == (encoded.token_ids, encoded.loss_mask)
