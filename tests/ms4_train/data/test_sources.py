"""Sources: every kind of file gives the same rows, numbered by what a user can find again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.rows import arithmetic_rows, tool_row, write_rows

from ms4_train.config.schema import DatasetSource
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
