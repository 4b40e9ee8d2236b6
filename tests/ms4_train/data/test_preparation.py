"""All rows of a run, read once: counts, splits, fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.rows import arithmetic_rows, chat, write_rows
from support.tokenizers import tiny_tokenizer

from ms4_train.config.schema import DataSection, DatasetSource
from ms4_train.data import prepare, survey
from ms4_train.data.preparation import PROGRESS_EVERY, DocumentStore, PreparedData, check_rows
from ms4_train.data.rows import Document
from ms4_train.errors import DataError

FAULTY: list[Any] = [
    *arithmetic_rows(20),
    "{broken",
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]},
    {"messages": [{"role": "assistant", "content": "a"}]},
    chat("q", "long " * 300),
]


def section(*paths: Path, **fields: Any) -> DataSection:
    return DataSection(train=[DatasetSource(path=str(path)) for path in paths], **{"max_length": 200, **fields})


def prepared(*paths: Path, **fields: Any) -> PreparedData:
    return prepare(section(*paths, **fields), tiny_tokenizer())


def ids_of(store: DocumentStore) -> list[str]:
    return [store.document(index).row_id for index in range(len(store))]


def test_counts_add_up(tmp_path: Path) -> None:
    data = prepared(write_rows(tmp_path / "a.jsonl", FAULTY))
    (counts,) = data.survey.sources
    assert (counts.rows_read, counts.rows_kept, counts.rows_bad, counts.rows_overlong, counts.rows_high) == (24, 20, 3, 1, 10)
    assert dict(data.survey.fault_counts) == {"bad-json": 1, "empty-assistant": 1, "role-order": 1, "overlong": 1}
    assert [fault.number for fault in data.survey.faults] == [21, 22, 23, 24]
    documents = [data.train[0].document(index) for index in range(20)]
    assert counts.tokens == sum(map(len, documents))
    assert counts.trained_tokens == sum(document.num_trained for document in documents)
    assert counts.longest > 200
    with pytest.raises(DataError, match=r"(?s)4 rows cannot be used:.*a\.jsonl:21: bad-json"):
        data.require_usable()


def test_thirty_seven_planted_faults_are_found_and_skipped(tmp_path: Path) -> None:
    rows: list[Any] = arithmetic_rows(1000)
    faults = FAULTY[20:]
    places = [17 + 26 * number for number in range(37)]
    for number, place in enumerate(places):
        rows[place] = faults[number % len(faults)]
    data = prepared(write_rows(tmp_path / "a.jsonl", rows), invalid_rows="skip", overlong_rows="skip")
    data.require_usable()
    assert [fault.number - 1 for fault in data.survey.faults] == places
    assert (data.survey.rows_read, data.survey.rows_kept, data.survey.rows_skipped) == (1000, 963, 37)
    assert len(data.train[0]) == 963


def test_validation_rows_are_held_out_once(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", arithmetic_rows(200))
    data = prepared(path, validation_fraction=0.2)
    trained, held_out = set(ids_of(data.train[0])), set(ids_of(data.validation[0]))
    assert 20 < len(held_out) < 60
    assert not trained & held_out
    assert len(trained | held_out) == 200
    (counts,) = data.survey.sources
    assert (counts.rows_kept, counts.rows_held_out) == (len(trained), len(held_out))


def test_validation_sources_replace_the_fraction(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "a.jsonl", arithmetic_rows(50))
    held = write_rows(tmp_path / "b.jsonl", arithmetic_rows(5, first=100))
    data = prepared(train, validation=[DatasetSource(path=str(held))], validation_fraction=0.5)
    assert len(data.train[0]) == 50
    assert ids_of(data.validation[0]) == [f"{held}:{line}" for line in range(1, 6)]
    assert data.survey.validation[0].rows_kept == 5
    assert data.survey.rows_kept == 50


def test_bad_validation_rows_stop_the_run_too(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "a.jsonl", arithmetic_rows(5))
    held = write_rows(tmp_path / "b.jsonl", FAULTY)
    with pytest.raises(DataError, match=r"b\.jsonl:21"):
        prepared(train, validation=[DatasetSource(path=str(held))]).require_usable()


def test_fingerprint_is_of_the_rows_and_their_order(tmp_path: Path) -> None:
    rows = arithmetic_rows(20)
    first = write_rows(tmp_path / "a.jsonl", rows)
    moved = write_rows(tmp_path / "elsewhere.jsonl", rows)
    changed = write_rows(tmp_path / "c.jsonl", [*rows[:-1], chat("What is 19+5?", "25", thinking="x")])
    same = prepared(first).fingerprint()
    assert prepared(moved).fingerprint() == same
    others = [
        prepared(changed),
        prepared(write_rows(tmp_path / "d.jsonl", reversed(rows))),
        prepared(first, max_length=300),
        prepared(first, packing=False),
        prepared(first, shuffle=False),
        prepared(first, train_on_thinking=False),
        prepared(first, validation_fraction=0.3),
        prepare(DataSection(train=[DatasetSource(path=str(first), weight=2)], max_length=200), tiny_tokenizer()),
    ]
    assert len({same, *(other.fingerprint() for other in others)}) == 1 + len(others)


def test_streams_are_only_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ms4_train.data.preparation.STREAM_SAMPLE_ROWS", 7)
    path = write_rows(tmp_path / "a.jsonl", arithmetic_rows(20))
    data = prepare(DataSection(train=[DatasetSource(path=str(path), streaming=True)], max_length=200), tiny_tokenizer())
    assert data.is_streaming
    assert len(data.train[0]) == 0
    assert data.survey.sources[0].is_sample
    assert (data.survey.rows_read, data.survey.rows_kept) == (7, 7)
    data.require_usable()


def test_survey_is_the_same_without_the_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", FAULTY)
    assert survey(section(path), tiny_tokenizer()).to_dict() == prepared(path).survey.to_dict()


def test_checking_counts_what_preparing_counts(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", FAULTY)
    (source,) = section(path).train
    assert check_rows(source, section(path), tiny_tokenizer()).to_dict() == prepared(path).survey.to_dict()
    form = check_rows(source, section(path), None)
    assert dict(form.fault_counts) == {"bad-json": 1, "empty-assistant": 1, "role-order": 1}


def test_progress_is_told(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", arithmetic_rows(PROGRESS_EVERY + 1))
    told: list[tuple[str, int]] = []
    prepare(section(path), tiny_tokenizer(), progress=lambda source, rows: told.append((source, rows)))
    assert told == [(str(path), PROGRESS_EVERY)]


def test_an_empty_file_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 0 rows"):
        prepared(write_rows(tmp_path / "a.jsonl", [])).require_usable()


def test_store_gives_back_what_it_got() -> None:
    import numpy as np

    documents = [Document(f"a:{n}", np.arange(n, dtype=np.int32), np.arange(n) % 2 == 0) for n in (3, 1, 5)]
    store = DocumentStore(documents)
    for index, document in enumerate(documents):
        again = store.document(index, source=4)
        assert (again.row_id, again.place, store.length(index)) == (document.row_id, (4, index), len(document))
        assert again.token_ids_t.tolist() == document.token_ids_t.tolist()
        assert again.loss_mask_t.tolist() == document.loss_mask_t.tolist()
