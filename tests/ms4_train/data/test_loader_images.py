"""The loader with images: look-ahead changes nothing that is seen or saved, and what goes wrong is said at its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.image_rows import broken_png, image_chat, mixed_file, mixed_rows, png
from support.rows import write_rows
from support.tokenizers import tiny_tokenizer

from ms4_train.config.schema import DataSection, DatasetSource
from ms4_train.data import PackedBatch, PreparedData, TrainLoader, build_eval_batches, build_loader, prepare
from ms4_train.data.image_batches import LOOK_AHEAD, ImageBatches
from ms4_train.errors import DataError, RowError

# Everything that training sees of a batch: targets, inputs, lengths, rows, grids and the sum of the pixels of each image.
Seen = tuple[list[int], list[int], tuple[int, ...], list[str], tuple[tuple[int, int], ...], list[float]]


def section(folder: Path, *, inline: bool = False, streaming: bool = False, **fields: Any) -> DataSection:
    path = mixed_file(folder, 17, inline=inline)
    return DataSection(
        train=[DatasetSource(path=str(path), streaming=streaming)], **{"max_length": 100, "images": {"workers": 1}, **fields}
    )


def loader(data: DataSection, prepared: PreparedData, **arguments: Any) -> TrainLoader:
    return build_loader(data, tiny_tokenizer(), prepared=prepared, **{"batch_size": 1, "seed": 5, **arguments})


def seen(batch: PackedBatch) -> Seen:
    grids, sums = (), []
    if batch.images is not None:
        grids = batch.images.grids
        sums = [float(part.double().sum()) for part in batch.images.patches_pi.split(list(batch.images.lengths))]
    return batch.target_ids_t.tolist(), batch.input_ids_t.tolist(), batch.lengths, batch.row_ids, grids, sums


def take(source: TrainLoader, count: int) -> list[Seen]:
    return [seen(source.next_batch()) for _ in range(count)]


@pytest.mark.parametrize(("streaming", "inline"), [(False, False), (True, True)])
def test_resume_after_any_batch_gives_the_remaining_batches(tmp_path: Path, streaming: bool, inline: bool) -> None:
    data = section(tmp_path, streaming=streaming, inline=inline)
    rows = prepare(data, tiny_tokenizer())
    walker = loader(data, rows)
    states, reference = [], []
    for _ in range(16):
        states.append((json.dumps(walker.state_dict()), walker.counts(), walker.epoch))
        reference += take(walker, 1)
    assert sum(bool(grids) for *_, grids, _ in reference) > 8
    assert any(len(lengths) > 1 and grids for _, _, lengths, _, grids, _ in reference), "no text row is packed with images"
    resumed = loader(data, rows)
    for done, (state, counts, epoch) in enumerate(states[:12]):
        # The same loader is wound back, so what it had planned must be forgotten.
        resumed.load_state_dict(json.loads(state))
        assert (resumed.counts(), resumed.epoch) == (counts, epoch)
        assert json.dumps(resumed.state_dict()) == state
        assert take(resumed, 3) == reference[done : done + 3], f"after {done} batches"
    walker.close()


def test_the_position_is_that_of_the_batch_handed_out(tmp_path: Path) -> None:
    data = section(tmp_path, packing=False, shuffle=False)
    rows = prepare(data, tiny_tokenizer())
    walker = loader(data, rows)
    for done in range(5):
        assert walker.state_dict()["order"] == {"epoch": 0, "cursor": done}
        assert walker.counts()["documents"] == done
        walker.next_batch()
    # Negative control: the loader has indeed planned further than that.
    assert walker._order.state_dict()["cursor"] == 5 + LOOK_AHEAD
    walker.close()
    assert rows.workers.process_ids() == []


def test_ranks_see_the_rows_that_one_rank_sees(tmp_path: Path) -> None:
    data = section(tmp_path)
    rows = prepare(data, tiny_tokenizer())
    one = take(loader(data, rows), 8)
    pair = [loader(data, rows, rank=rank, world_size=2) for rank in range(2)]
    assert [seen(rank.next_batch()) for _ in range(4) for rank in pair] == one
    assert json.dumps(pair[0].state_dict()) == json.dumps(pair[1].state_dict())
    pair[0].close()


def test_an_image_that_changes_during_the_run_stops_it_at_its_row(tmp_path: Path) -> None:
    data = section(tmp_path, packing=False, shuffle=False, invalid_rows="skip")
    rows = prepare(data, tiny_tokenizer())
    walker = loader(data, rows)
    take(walker, 1)
    (tmp_path / "pictures" / "80.png").write_bytes(png(84))  # row 9; of the same size
    take(walker, 7)
    state = walker.state_dict()
    with pytest.raises(DataError, match=r"rows\.jsonl:9: image 1 .*80\.png.* has changed since the run began") as info:
        walker.next_batch()
    assert isinstance(info.value, RowError)
    assert walker.state_dict() == state, "the position stays before the batch that could not be had"
    walker.close()


def test_a_broken_image_of_a_stream_follows_the_policy(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(broken_png())
    rows = mixed_rows(tmp_path, 5)
    path = write_rows(tmp_path / "rows.jsonl", [*rows[:3], image_chat("q", "a", "broken.png"), *rows[3:]])
    source = DatasetSource(path=str(path), streaming=True)
    data = DataSection(train=[source], packing=False, shuffle=False, images={"workers": 1})  # type: ignore[arg-type]
    prepared = prepare(data, tiny_tokenizer())
    with pytest.raises(DataError, match=r"rows\.jsonl:4: bad-image"):
        loader(data, prepared)
    # As if the row came behind the sample that is looked at before a run.
    prepared.survey.faults.clear()
    prepared.survey.fault_counts.clear()
    strict = loader(data, prepared)
    assert [row for *_, (row,), _, _ in take(strict, 3)] == [f"{path}:{number}" for number in (1, 2, 3)]
    with pytest.raises(RowError, match=r"rows\.jsonl:4: image 1 .* cannot be decoded"):
        strict.next_batch()
    lenient = loader(data.model_copy(update={"invalid_rows": "skip"}), prepared_with(prepared, "skip"))
    assert [row for *_, (row,), _, _ in take(lenient, 6)] == [f"{path}:1", f"{path}:2", f"{path}:3", "filler", f"{path}:5", f"{path}:6"]
    lenient.close()


def prepared_with(prepared: PreparedData, invalid_rows: str) -> PreparedData:
    prepared.section = prepared.section.model_copy(update={"invalid_rows": invalid_rows})
    return prepared


def test_evaluation_covers_rows_with_images_on_every_rank(tmp_path: Path) -> None:
    data = section(tmp_path, validation_fraction=0.5)
    prepared = prepare(data, tiny_tokenizer())
    documents = [store.document(index) for store in prepared.validation for index in range(len(store))]
    assert any(document.images for document in documents)
    for world_size in (1, 3):
        per_rank = [
            build_eval_batches(data, tiny_tokenizer(), batch_size=2, rank=rank, world_size=world_size, prepared=prepared)
            for rank in range(world_size)
        ]
        assert len({len(batches) for batches in per_rank}) == 1
        held = [batch for batches in per_rank for batch in batches]
        assert sorted(row for batch in held for row in batch.row_ids if row != "filler") == sorted(d.row_id for d in documents)
        assert sum(len(batch.images.grids) for batch in held if batch.images is not None) == sum(len(d.images) for d in documents)
        if world_size == 1:
            assert isinstance(per_rank[0], ImageBatches)
            assert list(map(seen, per_rank[0])) == list(map(seen, per_rank[0]))
    prepared.workers.close()
