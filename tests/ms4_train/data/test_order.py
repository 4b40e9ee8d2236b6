"""Orders of documents, in memory and streamed, and their positions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.rows import arithmetic_rows, write_rows
from support.tokenizers import tiny_tokenizer

from ms4_train.config.schema import DataSection, DatasetSource
from ms4_train.data import prepare
from ms4_train.data.order import MemoryOrder, StreamOrder, make_order
from ms4_train.errors import DataError, RowError

BLOCK = 8


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ms4_train.data.order.BLOCK_ROWS", BLOCK)


def order_of(
    folder: Path, sizes: tuple[int, ...] = (20,), *, streaming: bool = False, weights: Any = None, seed: int = 0, **fields: Any
) -> Any:
    sources = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.jsonl"
        if not path.exists():
            write_rows(path, arithmetic_rows(size, first=100 * number))
        sources.append(DatasetSource(path=str(path), streaming=streaming, weight=weights[number] if weights else 1.0))
    section = DataSection(train=sources, max_length=200, **fields)
    return make_order(prepare(section, tiny_tokenizer()), tiny_tokenizer(), seed)


def names(order: MemoryOrder | StreamOrder, count: int) -> list[str]:
    """Short names of the next documents; ``-`` where an epoch ends."""
    out: list[str] = []
    for _ in range(count):
        document = order.draw()
        out.append("-" if document is None else Path(document.row_id).name.replace(".jsonl", ""))
    return out


def test_epochs_in_memory_show_every_row_and_end(tmp_path: Path) -> None:
    order = order_of(tmp_path, (5, 3))
    first, second = names(order, 9), names(order, 9)
    assert first[8] == second[8] == "-"
    assert sorted(first[:8]) == sorted(second[:8]) == [f"0:{n}" for n in range(1, 6)] + [f"1:{n}" for n in range(1, 4)]
    assert first != second
    assert order.epoch == 2.0
    assert order.source_rows_per_epoch == 8
    assert order.row_counts() == {"rows_read": 8, "rows_kept": 8, "rows_skipped": 0}


def test_order_without_shuffling_is_that_of_the_files(tmp_path: Path) -> None:
    assert names(order_of(tmp_path, (3, 2), shuffle=False), 6) == ["0:1", "0:2", "0:3", "1:1", "1:2", "-"]
    stream = order_of(tmp_path, (3, 2), shuffle=False, streaming=True)
    assert names(stream, 7) == ["0:1", "1:1", "0:2", "1:2", "0:3", "1:1", "0:1"]


def test_streams_show_every_row_once_per_pass_shuffled_in_blocks(tmp_path: Path) -> None:
    order = order_of(tmp_path, (20,), streaming=True)
    first = names(order, 20)
    assert sorted(first[:BLOCK]) == sorted(f"0:{n}" for n in range(1, BLOCK + 1))
    assert first[:BLOCK] != [f"0:{n}" for n in range(1, BLOCK + 1)]
    second = names(order, 20)
    assert sorted(first) == sorted(second)
    assert first != second
    assert (order.epoch, order.source_rows_per_epoch) == (0.0, None)
    assert order.row_counts()["rows_read"] == 20 + 2 * BLOCK


def test_streams_are_mixed_by_weight(tmp_path: Path) -> None:
    drawn = Counter(name[0] for name in names(order_of(tmp_path, (4, 20), streaming=True, weights=[3.0, 1.0]), 40))
    assert drawn == {"0": 30, "1": 10}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_position_is_exact_after_any_number_of_draws(tmp_path: Path, streaming: bool) -> None:
    order_of(tmp_path, (9, 16))
    sources = [DatasetSource(path=str(tmp_path / f"{n}.jsonl"), streaming=streaming, weight=1.0 - n / 2) for n in range(2)]
    prepared = prepare(DataSection(train=sources, max_length=200, validation_fraction=0.1), tiny_tokenizer())

    def fresh() -> Any:
        return make_order(prepared, tiny_tokenizer(), 0)

    reference = names(fresh(), 70)
    walker = fresh()
    for taken in range(60):
        state = json.loads(json.dumps(walker.state_dict()))
        resumed = fresh()
        resumed.load_state_dict(state)
        assert names(resumed, 10) == reference[taken : taken + 10]
        assert json.loads(json.dumps(resumed.state_dict())) != state
        walker.draw()


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_survive_being_referred_to(tmp_path: Path, streaming: bool) -> None:
    order = order_of(tmp_path, streaming=streaming)
    document = order.draw()
    again = order.restore(json.loads(json.dumps(order.reference(document))))
    assert again.row_id == document.row_id
    assert again.token_ids_t.tolist() == document.token_ids_t.tolist()
    assert again.loss_mask_t.tolist() == document.loss_mask_t.tolist()
    assert again.token_ids_t.dtype == document.token_ids_t.dtype


def test_bad_rows_in_a_stream(tmp_path: Path) -> None:
    rows: list[Any] = arithmetic_rows(2 * BLOCK)
    rows[3] = {"messages": []}
    write_rows(tmp_path / "0.jsonl", rows)
    with pytest.raises(RowError, match=r"0\.jsonl:4"):
        names(order_of(tmp_path, streaming=True), 1)
    skipping = order_of(tmp_path, streaming=True, invalid_rows="skip")
    assert "0:4" not in names(skipping, 2 * BLOCK)
    assert skipping.row_counts() == {"rows_read": 2 * BLOCK, "rows_kept": 2 * BLOCK - 1, "rows_skipped": 1}


def test_held_out_rows_never_come(tmp_path: Path) -> None:
    stream = order_of(tmp_path, (40,), streaming=True, validation_fraction=0.3)
    memory = order_of(tmp_path, (40,), validation_fraction=0.3)
    kept = set(names(memory, memory.source_rows_per_epoch or 0))
    assert 10 < len(kept) < 40
    assert set(names(stream, 2 * len(kept))) == kept


def test_a_stream_without_usable_rows_ends(tmp_path: Path) -> None:
    write_rows(tmp_path / "0.jsonl", [{"messages": []}] * 3)
    with pytest.raises(DataError, match="no row of the stream"):
        names(order_of(tmp_path, streaming=True, invalid_rows="skip"), 1)
