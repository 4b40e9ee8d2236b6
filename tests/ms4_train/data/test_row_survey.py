"""Counts, refusals and the text shown before a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.rows import chat

from ms4_train.chat import read_row
from ms4_train.data.row_survey import SHOWN_FAULTS, SourceCounts, Survey
from ms4_train.data.rows import OVERLONG, Fault
from ms4_train.errors import DataError


def survey_with(bad: int = 0, overlong: int = 0, **counts: int) -> Survey:
    result = Survey(sources=[SourceCounts("a.jsonl", 1.0, **counts)])
    for number in range(bad):
        result.add_fault(result.sources[0], Fault("a.jsonl", number + 1, "empty-user", "empty.", fix="remove it."))
    for number in range(overlong):
        result.add_fault(result.sources[0], Fault("a.jsonl", 1000 + number, OVERLONG, "too long."))
    return result


def test_faults_stop_a_run_unless_they_may_be_skipped() -> None:
    both = survey_with(bad=2, overlong=1, rows_read=5, rows_kept=2)
    both.require_valid(invalid_rows="skip", overlong_rows="skip")
    survey_with().require_valid(invalid_rows="error", overlong_rows="error")
    with pytest.raises(
        DataError, match=r"3 rows cannot be used:\s+a\.jsonl:1: empty-user(?s:.*)invalid_rows: skip and data\.overlong_rows: skip"
    ):
        both.require_valid(invalid_rows="error", overlong_rows="error")
    with pytest.raises(DataError, match=r"1 rows cannot be used:\s+a\.jsonl:1000: overlong(?s:.*)set data\.overlong_rows"):
        both.require_valid(invalid_rows="skip", overlong_rows="error")
    with pytest.raises(DataError, match="2 rows cannot be used"):
        both.require_valid(invalid_rows="error", overlong_rows="skip")


def test_the_first_faults_are_listed_and_the_rest_counted() -> None:
    with pytest.raises(DataError) as caught:
        survey_with(bad=37).require_valid(invalid_rows="error", overlong_rows="error")
    message = str(caught.value)
    assert message.count("empty-user") == SHOWN_FAULTS
    assert f"and {37 - SHOWN_FAULTS} more" in message
    assert len(message.splitlines()) == SHOWN_FAULTS + 3  # what is wrong, the faults, how many more, the fix


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 4 rows"):
        survey_with(rows_read=4).require_trainable()
    with pytest.raises(DataError, match="none of the 90 tokens carries loss"):
        survey_with(rows_read=4, rows_kept=4, tokens=90).require_trainable()
    survey_with(rows_read=4, rows_kept=4, tokens=90, trained_tokens=1).require_trainable()


def test_lines_say_what_carries_loss_and_what_was_skipped() -> None:
    result = survey_with(bad=2, rows_read=10, rows_kept=8, rows_high=3, tokens=1000, trained_tokens=250, longest=120)
    lines = result.lines()
    assert lines[0] == "a.jsonl: 10 rows read, 8 kept, 0 held out, 2 skipped; 3 in mode high; longest 120 tokens"
    assert "skipped as empty-user: 2" in lines
    assert lines[-1] == "tokens: 1,000, of which 250 carry loss (25.0%)"


def test_a_mixture_is_explained() -> None:
    result = survey_with(rows_read=10, rows_kept=10)
    result.sources.append(SourceCounts("b.jsonl", 0.5, rows_read=20, rows_kept=20))
    assert "b.jsonl: 20 rows x weight 0.5 = 10 rows per epoch (50.0% of the mixture)" in result.lines()
    result.sources[0].is_sample = result.sources[1].is_sample = True
    assert "b.jsonl: 33.3% of the rows drawn (weight 0.5)" in result.lines()


def test_tags_spelled_in_answers_are_pointed_out() -> None:
    counts = SourceCounts("a.jsonl", 1.0)
    for answer in ("<think>so</think>4", "[THINK]so[/THINK]4", "plain"):
        counts.add_row(read_row(chat("What does [THINK] mean?", answer)))
    assert counts.rows_spelled_tags == 2
    assert any("warning" in line and "reasoning_content" in line for line in Survey(sources=[counts]).lines())


def test_faults_are_written_where_the_user_finds_them(tmp_path: Path) -> None:
    survey_with(bad=2).write_faults(tmp_path / "faults.jsonl")
    entries = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["number"], entry["code"]) for entry in entries] == [
        ("a.jsonl", 1, "empty-user"),
        ("a.jsonl", 2, "empty-user"),
    ]


def test_a_flood_of_one_fault_does_not_hide_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ms4_train.data.row_survey.KEPT_FAULTS", 3)
    result = survey_with(overlong=10)
    result.add_fault(result.sources[0], Fault("a.jsonl", 5, "empty-user", "empty."))
    assert len(result.faults) == 4
    with pytest.raises(DataError, match="empty-user"):
        result.require_valid(invalid_rows="error", overlong_rows="skip")
    assert json.dumps(result.to_dict())
