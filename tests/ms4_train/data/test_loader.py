"""The loader: exact resume at every batch, one global order for any number of ranks, and controls that show the tests can fail."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support.rows import arithmetic_rows, chat, write_rows
from support.tokenizers import tiny_tokenizer

from ms4_train.config.schema import DataSection, DatasetSource
from ms4_train.data import PackedBatch, TrainLoader, build_eval_batches, build_loader, prepare
from ms4_train.errors import DataError

# (targets, inputs, lengths, rows): everything that training sees of a batch.
Seen = tuple[list[int], list[int], tuple[int, ...], list[str]]


def section(folder: Path, *, streaming: bool = False, **fields: Any) -> DataSection:
    """A mixture of two sources of 23 and 12 rows, the second drawn twice per epoch."""
    for name, count, first in (("a", 23, 0), ("b", 12, 500)):
        if not (folder / f"{name}.jsonl").exists():
            write_rows(folder / f"{name}.jsonl", arithmetic_rows(count, first=first))
    sources = [
        DatasetSource(path=str(folder / "a.jsonl"), streaming=streaming),
        DatasetSource(path=str(folder / "b.jsonl"), streaming=streaming, weight=2.0),
    ]
    return DataSection(train=sources, **{"max_length": 150, **fields})


def loader(data: DataSection, **arguments: Any) -> TrainLoader:
    return build_loader(data, tiny_tokenizer(), **{"batch_size": 2, "seed": 5, **arguments})


def seen(batch: PackedBatch) -> Seen:
    return batch.target_ids_t.tolist(), batch.input_ids_t.tolist(), batch.lengths, batch.row_ids


def take(source: TrainLoader, count: int) -> list[Seen]:
    iterator = iter(source)
    return [seen(next(iterator)) for _ in range(count)]


def rewound(data: DataSection, state: dict[str, Any], **arguments: Any) -> TrainLoader:
    again = loader(data, **arguments)
    again.load_state_dict(json.loads(json.dumps(state)))
    return again


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_resume_after_any_batch_gives_the_remaining_batches(tmp_path: Path, packing: bool, streaming: bool) -> None:
    data = section(tmp_path, packing=packing, streaming=streaming)
    rows = prepare(data, tiny_tokenizer())
    reference = take(loader(data, prepared=rows), 40)
    walker = loader(data, prepared=rows)
    # Two epochs of 47 rows: mid-epoch, at the end of an epoch, and behind it.
    for done in range(34):
        state = walker.state_dict()
        resumed = rewound(data, state, prepared=rows)
        assert resumed.counts() == walker.counts()
        assert take(resumed, 5) == reference[done : done + 5], f"after {done} batches"
        walker.next_batch()


def test_forgetting_the_carry_over_is_noticed(tmp_path: Path) -> None:
    # Negative control: the defect this loader exists to avoid. Without it the test above must fail somewhere.
    data = section(tmp_path)
    rows = prepare(data, tiny_tokenizer())
    reference = take(loader(data, prepared=rows), 20)
    walker = loader(data, prepared=rows)
    for done in range(12):
        state = walker.state_dict()
        resumed = rewound(data, {**state, "carry_over": []}, prepared=rows)
        # Where the packer holds nothing (at the very start, at an epoch's end) there is nothing to forget.
        assert (take(resumed, 5) == reference[done : done + 5]) == (state["carry_over"] == [])
        walker.next_batch()


def test_a_stream_resumes_after_the_shuffled_block_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ms4_train.data.order.BLOCK_ROWS", 4)
    data = section(tmp_path, streaming=True)
    rows = prepare(data, tiny_tokenizer())
    reference = take(loader(data, prepared=rows), 30)
    walker = loader(data, prepared=rows)
    for done in range(25):
        assert take(rewound(data, walker.state_dict(), prepared=rows), 4) == reference[done : done + 4]
        walker.next_batch()


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_shows_every_row_as_often_as_its_weight_says(tmp_path: Path, packing: bool) -> None:
    source = loader(section(tmp_path, packing=packing), batch_size=1)
    assert source.source_rows_per_epoch == 23 + 2 * 12
    for epoch in range(2):
        drawn: list[str] = []
        while len(drawn) < 47:
            drawn += source.next_batch().row_ids
        assert len(drawn) == 47
        assert sorted(set(drawn)) == sorted(
            [f"{tmp_path}/a.jsonl:{n + 1}" for n in range(23)] + [f"{tmp_path}/b.jsonl:{n + 1}" for n in range(12)]
        )
        assert all(drawn.count(f"{tmp_path}/b.jsonl:{n + 1}") == 2 for n in range(12))
        assert source.epoch == pytest.approx(epoch + 1)


def test_rows_per_epoch_is_the_number_of_packed_rows(tmp_path: Path) -> None:
    for packing in (True, False):
        source = loader(section(tmp_path, packing=packing), batch_size=1)
        expected = source.rows_per_epoch
        rows = 0
        while source.counts()["documents"] < 47:
            source.next_batch()
            rows += 1
        assert rows == expected
    assert loader(section(tmp_path, streaming=True)).rows_per_epoch is None


def test_packed_rows_keep_documents_apart_and_within_the_length(tmp_path: Path) -> None:
    data = section(tmp_path)
    alone = {row: (inputs, targets) for targets, inputs, _, (row,) in take(loader(section(tmp_path, packing=False), batch_size=1), 47)}
    for targets, inputs, lengths, rows in take(loader(data, batch_size=1), 12):
        assert sum(lengths) == len(inputs) == len(targets) <= 150
        start = 0
        for length, row in zip(lengths, rows, strict=True):
            assert (inputs[start : start + length], targets[start : start + length]) == alone[row]
            start += length
    assert any(len(lengths) > 1 for _, _, lengths, _ in take(loader(data, batch_size=1), 12))


def global_rows(
    data: DataSection, world_size: int, batches: int, *, batch_size: int, state: dict[str, Any] | None = None
) -> list[list[str]]:
    """Row ids of the packed rows in global order, put together from all ranks (batch size 1: one packed row per batch)."""
    ranks = [loader(data, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    if state is not None:
        for rank in ranks:
            rank.load_state_dict(copy.deepcopy(state))
    rows: list[list[str]] = []
    for _ in range(batches):
        rows += [rank.next_batch().row_ids for rank in ranks]
    assert len({json.dumps(rank.state_dict()) for rank in ranks}) == 1
    return rows


def test_the_global_order_does_not_depend_on_the_ranks(tmp_path: Path) -> None:
    data = section(tmp_path)
    one = global_rows(data, 1, 24, batch_size=1)
    assert global_rows(data, 2, 12, batch_size=1) == one
    assert global_rows(data, 3, 8, batch_size=1) == one


def test_row_i_goes_to_rank_i_modulo_the_ranks(tmp_path: Path) -> None:
    data = section(tmp_path, packing=False)
    one = [name for row in global_rows(data, 1, 8, batch_size=1) for name in row]
    assert global_rows(data, 2, 2, batch_size=2) == [[one[0], one[2]], [one[1], one[3]], [one[4], one[6]], [one[5], one[7]]]


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    data = section(tmp_path)
    one = global_rows(data, 1, 24, batch_size=1)
    pair = [loader(data, batch_size=1, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(5):
        for rank in pair:
            rank.next_batch()
    state = pair[1].state_dict()
    assert global_rows(data, 1, 14, batch_size=1, state=state) == one[10:24]
    assert global_rows(data, 2, 7, batch_size=1, state=state) == one[10:24]
    # Two ranks with batches of one see together what one rank with batches of two sees.
    (_, _, _, rows) = take(rewound(data, state), 1)[0]
    assert rows == one[10] + one[11]


def test_seeds_differ(tmp_path: Path) -> None:
    data = section(tmp_path)
    assert take(loader(data, seed=1), 3) != take(loader(data, seed=2), 3)


def test_positions_of_other_data_are_refused(tmp_path: Path) -> None:
    data = section(tmp_path)
    state = loader(data).state_dict()
    for other, arguments in ((section(tmp_path, max_length=160), {}), (data, {"seed": 6})):
        with pytest.raises(DataError, match="other data"):
            loader(other, **arguments).load_state_dict(state)
    write_rows(tmp_path / "a.jsonl", arithmetic_rows(23, first=1))
    with pytest.raises(DataError, match=r"other data.*Fix"):
        loader(data).load_state_dict(state)


@pytest.mark.parametrize("change", [{"version": 0}, {"order": {}}, {"carry_over": [[[0, 99]]]}, {"ready": [[5]]}, {"packed_rows": None}])
def test_damaged_positions_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    data = section(tmp_path)
    source = loader(data)
    take(source, 2)
    with pytest.raises(DataError, match="data position"):
        rewound(data, {**source.state_dict(), **change})


def test_counts_are_over_all_ranks(tmp_path: Path) -> None:
    data = section(tmp_path)
    ranks = [loader(data, rank=rank, world_size=2) for rank in range(2)]
    batches = [rank.next_batch() for rank in ranks for _ in range(3)]
    for rank in ranks:
        counts = rank.counts()
        assert counts["tokens"] == sum(batch.num_tokens for batch in batches)
        assert counts["trained_tokens"] == sum(batch.num_trained for batch in batches)
        assert counts["documents"] == sum(len(batch.lengths) for batch in batches)
        assert counts["packed_rows"] == 12
        assert (counts["rows_read"], counts["rows_kept"], counts["rows_skipped"]) == (35, 35, 0)


def test_bad_rows_stop_before_the_first_batch(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [chat("q", "a"), {"messages": []}])
    data = DataSection(train=[DatasetSource(path=str(path))])
    with pytest.raises(DataError, match=r"a\.jsonl:2: no-messages"):
        loader(data)
    assert take(loader(data.model_copy(update={"invalid_rows": "skip"}), batch_size=1), 1)[0][3] == [f"{path}:1"]


def test_prepared_rows_are_used_as_they_are(tmp_path: Path) -> None:
    data = section(tmp_path)
    prepared = prepare(data, tiny_tokenizer())
    (tmp_path / "a.jsonl").unlink()
    assert len(take(loader(data, prepared=prepared), 2)) == 2


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_covers_every_held_out_row_once(tmp_path: Path, packing: bool, world_size: int) -> None:
    data = section(tmp_path, packing=packing, validation_fraction=0.4)
    prepared = prepare(data, tiny_tokenizer())
    expected = sorted(store.document(index).row_id for store in prepared.validation for index in range(len(store)))
    per_rank = [
        build_eval_batches(data, tiny_tokenizer(), batch_size=2, rank=rank, world_size=world_size, prepared=prepared)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    rows = [row for batches in per_rank for batch in batches for row in batch.row_ids if row != "filler"]
    assert sorted(rows) == expected
    assert 5 < len(expected) < 30


def test_evaluation_can_be_cut_short_and_may_be_empty(tmp_path: Path) -> None:
    data = section(tmp_path, packing=False, validation_fraction=0.4)
    assert len(build_eval_batches(data, tiny_tokenizer(), batch_size=1, max_rows=3)) == 3
    assert build_eval_batches(section(tmp_path), tiny_tokenizer(), batch_size=1) == []
