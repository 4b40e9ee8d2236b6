"""Reads rows from where they are: JSON lines, JSON arrays, Parquet, and data sets of the Hugging Face hub.

Parquet and hub data sets come through ``datasets.load_dataset``. Local JSON does not, on purpose: ``datasets`` fits all rows into one
Arrow schema, which refuses columns that hold text in one row and parts in the next, fills objects (tool arguments!) with nulls for keys
that only other rows have, and cannot say which line of a file is broken. Read line by line, each row is what the file says, and each
fault has its file and line. Columnar sources cannot avoid the filling, so there tool arguments should be JSON text.

Images stay as they are stored: JSON names them by path or data URL, columnar sources hold their bytes. ``datasets`` is kept from decoding
them, because it would do so without our bounds.

Exercise it: ``pytest tests/ms4_train/data/test_sources.py``.

Not covered: compressed JSON.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ms4_train.config.schema import DatasetSource
from ms4_train.data.rows import RawRow
from ms4_train.errors import DataError
from ms4_train.untrusted import iter_json_lines, parse_json, read_bytes

MAX_JSON_ARRAY_BYTES = 1 << 30
"""A JSON array is parsed as a whole; larger sets should be JSON lines, which are read line by line."""

_LOCAL_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


def is_local_file(source: DatasetSource) -> bool:
    """Whether the path names a local file (by its ending), not a hub data set or a folder."""
    return Path(source.path).suffix.lower() in _LOCAL_SUFFIXES


def iter_rows(source: DatasetSource, *, start: int = 0) -> Iterator[RawRow]:
    """Yield the rows of a source in its own order, from the ``start``-th row on.

    A line that is not JSON is yielded with its error as the value.

    Raises:
        DataError: the source cannot be opened or read.
        UntrustedInputError: a local JSON file cannot be read.
    """
    if is_local_file(source):
        _refuse_hub_keys(source)
        suffix = Path(source.path).suffix.lower()
        rows = _iter_parquet(source) if suffix == ".parquet" else _iter_json(source)
    else:
        rows = _iter_data_set(source)
    return itertools.islice(rows, start, None)


def _refuse_hub_keys(source: DatasetSource) -> None:
    for key, default in (("name", None), ("split", "train"), ("revision", None)):
        if getattr(source, key) != default:
            raise DataError(
                f"{key} only has a meaning for hub data sets.", file=source.path, key=key, fix=f"remove {key} from this source."
            )


def _iter_json(source: DatasetSource) -> Iterator[RawRow]:
    if _is_json_array(source.path):
        rows = parse_json(read_bytes(source.path, max_bytes=MAX_JSON_ARRAY_BYTES), file=source.path)
        yield from (RawRow(source.path, number, value) for number, value in enumerate(rows, start=1))
    else:
        yield from (RawRow(source.path, line, value) for line, value in iter_json_lines(source.path))


def _is_json_array(path: str) -> bool:
    """Whether a ``.json`` file is one array; in ``.jsonl`` a line that is an array is a fault of that line."""
    if Path(path).suffix.lower() != ".json" or not Path(path).is_file():
        return False
    with Path(path).open("rb") as handle:
        head = handle.read(4096)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _iter_parquet(source: DatasetSource) -> Iterator[RawRow]:
    if not Path(source.path).is_file():
        raise DataError("there is no such file.", file=source.path, fix="check the path; relative paths start at the current folder.")
    # Streaming reads the file where it lies; otherwise a second copy of it would be written to the cache.
    yield from _iter_loaded(source, "parquet", data_files=source.path, split="train", streaming=True)


def _iter_data_set(source: DatasetSource) -> Iterator[RawRow]:
    suffix = Path(source.path).suffix.lower()
    if suffix and Path(source.path).is_file():
        known = ", ".join(_LOCAL_SUFFIXES)
        raise DataError(f"files ending in {suffix} are not read.", file=source.path, fix=f"convert it to one of {known}.")
    yield from _iter_loaded(source, source.path, name=source.name, split=source.split, revision=source.revision, streaming=source.streaming)


def _with_encoded_images(rows: Any) -> Any:
    """The rows of a data set, each image as ``{"bytes": ..., "path": ...}``."""
    from datasets import Dataset
    from datasets.features.features import require_decoding

    if not rows.features or not require_decoding(rows.features):
        return rows
    return (rows.to_iterable_dataset() if isinstance(rows, Dataset) else rows).decode(False)


def _iter_loaded(source: DatasetSource, path: str, **arguments: Any) -> Iterator[RawRow]:
    from datasets import load_dataset

    try:
        for number, value in enumerate(_with_encoded_images(load_dataset(path, **arguments)), start=1):
            yield RawRow(source.path, number, value)
    # The library raises errors of many others: network, hub, Arrow, file formats. All mean that the source cannot be read.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"cannot be read ({reason}).",
            file=source.path,
            fix="check path, name, split and revision; a hub data set needs network access, and a gated one `hf auth login`.",
        ) from error
