"""Reads what an offline W&B run left, with W&B's own message types."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7


def read_records(path: Path) -> Iterator[Any]:
    """W&B's file is a LevelDB log: blocks of framed chunks (checksum 4 bytes, length 2, type 1), here without checking the checksums."""
    data = path.read_bytes()
    position, parts = FILE_HEADER, []
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts.append(data[position + HEADER : position + HEADER + length])
        position += HEADER + length
        if kind in {1, 4}:  # the whole of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def tables(run_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The tables of a run's folder, by name, each row as a dictionary."""
    found = {}
    for path in sorted((run_folder / "files").rglob("*.table.json")):
        values = json.loads(path.read_text())
        found[path.name.split("_")[0]] = [dict(zip(values["columns"], row, strict=True)) for row in values["data"]]
    return found


def artifacts(records: list[Any]) -> list[tuple[str, list[str]]]:
    """(type, names of its files) of every artifact."""
    found = []
    for record in records:
        if record.WhichOneof("record_type") == "artifact":
            found.append((record.artifact.type, [entry.path for entry in record.artifact.manifest.contents]))
        elif record.WhichOneof("record_type") == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            artifact = record.request.log_artifact.artifact
            found.append((artifact.type, [entry.path for entry in artifact.manifest.contents]))
    return found
