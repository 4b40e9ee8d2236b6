"""Sources: every kind of file gives the same rows, numbered by what a user can find again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.image_rows import png
from support.rows import arithmetic_rows, tool_row, write_rows
from support.tokenizers import tiny_tokenizer

from ms4_train.config.schema import DataSection, DatasetSource, FieldMap
from ms4_train.data.pipeline import RowPipeline
from ms4_train.data.sources import is_local_file, iter_rows
from ms4_train.errors import DataError, MS4Error, UntrustedInputError

ROWS = arithmetic_rows(5)


def read(path: Path, **fields: Any) -> list[tuple[int, Any]]:
    start = fields.pop("start", 0)
    return [(raw.number, raw.value) for raw in iter_rows(DatasetSource(path=str(path), **fields), start=start)]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    # Columnar files cannot mix text and parts in one column: parts are written as they usually are, in a field of their own.
    flat = [
        {
            "messages": [
                {"role": m["role"], "content": m["content"] if isinstance(m["content"], str) else m["content"][1]["text"],
                 "reasoning_content": None if isinstance(m["content"], str) else m["content"][0]["thinking"]}
                for m in row["messages"]
            ],
            "reasoning_effort": row["reasoning_effort"],
        }
        for row in rows
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), path)
    return path


def test_json_lines_are_numbered_by_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [ROWS[0], "", "{broken", ROWS[1]])
    rows = read(path)
    assert [number for number, _ in rows] == [1, 3, 4]
    assert (rows[0][1], rows[2][1]) == (ROWS[0], ROWS[1])
    assert isinstance(rows[1][1], UntrustedInputError)


def test_bytes_of_other_editors(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in ROWS))
    assert [value for _, value in read(path)] == ROWS


def test_json_arrays_and_json_lines_named_json(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_text(" \n" + json.dumps(ROWS, indent=1))
    write_rows(tmp_path / "lines.json", ROWS)
    assert read(tmp_path / "array.json") == read(tmp_path / "lines.json") == list(enumerate(ROWS, start=1))


def test_values_stay_what_the_file_says(tmp_path: Path) -> None:
    # Arrow would refuse the mixed content, and would fill the arguments of one call with the keys of another.
    path = write_rows(tmp_path / "a.jsonl", [tool_row(), *ROWS])
    assert [value for _, value in read(path)] == [tool_row(), *ROWS]


def test_parquet_comes_through_datasets(tmp_path: Path) -> None:
    rows = read(parquet(tmp_path / "a.parquet", ROWS))
    assert [number for number, _ in rows] == [1, 2, 3, 4, 5]
    assert [value["messages"][0]["content"] for _, value in rows] == [row["messages"][0]["content"] for row in ROWS]
    assert [value["reasoning_effort"] for _, value in rows] == ["none", "high", "none", "high", "none"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_by_name(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder is loaded the way a hub name is, without the network.
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    parquet(tmp_path / "set" / "train.parquet", ROWS)
    rows = read(tmp_path / "set", streaming=streaming, start=2)
    assert [number for number, _ in rows] == [3, 4, 5]


def test_reading_can_start_later(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    assert read(path, start=3) == list(enumerate(ROWS, start=1))[3:]
    assert read(path, start=9) == []


def test_what_is_local() -> None:
    assert is_local_file(DatasetSource(path="x/rows.JSONL"))
    assert not is_local_file(DatasetSource(path="org/name"))


def test_missing_and_unreadable_sources(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "bad.json").write_text("[1, 2")
    (tmp_path / "rows.csv").write_text("a,b")
    for name in ("none.jsonl", "none.json", "none.parquet", "bad.parquet", "bad.json", "rows.csv", "no-such-folder"):
        with pytest.raises(MS4Error, match=name.replace(".", r"\.")):
            read(tmp_path / name)


@pytest.mark.parametrize("fields", [{"name": "x"}, {"split": "test"}, {"revision": "main"}])
def test_hub_keys_on_local_files_are_refused(tmp_path: Path, fields: dict[str, str]) -> None:
    with pytest.raises(DataError, match="hub"):
        read(write_rows(tmp_path / "a.jsonl", ROWS), **fields)


def image_table(path: Path, *, declared: bool) -> Path:
    """Two rows with an ``images`` column of two images and one; ``declared``: as the ``Image`` feature of ``datasets``."""
    import datasets
    import pyarrow.parquet

    def turns(count: int) -> list[dict[str, Any]]:
        parts = [{"type": "image", "text": None}] * count + [{"type": "text", "text": "what?"}]
        return [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "that"}]}]

    struct = [[{"bytes": png(seed), "path": None} for seed in seeds] for seeds in ((0, 1), (2,))]
    rows = [{"messages": turns(len(images)), "pictures": images} for images in struct]
    if declared:
        table = datasets.Dataset.from_list(rows).cast_column("pictures", datasets.List(datasets.Image()))
        table.to_parquet(path)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("declared", [True, False])
def test_images_of_parquet_files_stay_encoded(tmp_path: Path, declared: bool) -> None:
    import datasets

    path = image_table(tmp_path / "a.parquet", declared=declared)
    rows = read(path)
    assert [[image["bytes"] for image in value["pictures"]] for _, value in rows] == [[png(0), png(1)], [png(2)]]
    source = DatasetSource(path=str(path), fields=FieldMap(images="pictures"))
    pipeline = RowPipeline(source, DataSection(train=[source]), tiny_tokenizer())
    outcomes = [pipeline.process(raw) for raw in iter_rows(source)]
    assert [outcome.fault for outcome in outcomes] == [None, None]
    assert [[image.data for image in outcome.images] for outcome in outcomes] == [[png(0), png(1)], [png(2)]]
    if declared:
        # Negative control: left alone, the library hands out decoded pictures.
        plain: Any = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        assert not isinstance(next(iter(plain))["pictures"][0], dict)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_a_data_set_by_name_stay_encoded(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    image_table(tmp_path / "set" / "train.parquet", declared=True)
    rows = read(tmp_path / "set", streaming=streaming)
    assert [[image["bytes"] for image in value["pictures"]] for _, value in rows] == [[png(0), png(1)], [png(2)]]
