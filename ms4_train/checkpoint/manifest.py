"""MANIFEST.json: the SHA-256 and size of every file of a checkpoint. A folder without a matching manifest is not a checkpoint.

It is written last, in one canonical form, so that any changed bit in it or in a file it names is found before a tensor is read.
Exercise it: ``pytest tests/ms4_train/checkpoint/test_manifest.py``.

Not covered: a person who changes a file and the manifest together; sums find damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ms4_train.errors import CheckpointError, MS4Error
from ms4_train.untrusted import parse_json, read_bytes

MANIFEST_NAME = "MANIFEST.json"
MAX_JSON_BYTES = 1 << 30
_FORMAT = "ms4-run-state"
_VERSION = 1


@dataclass(frozen=True)
class FileSum:
    """Identity of one file's bytes."""

    sha256: str
    bytes: int


def write_synced(path: Path, data: bytes | memoryview) -> FileSum:
    """Write a new file, flush it to the disk, and return its sum. The sum is of the bytes in memory, not of what a disk gave back.

    Raises:
        OSError: the disk is full or the path cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileSum(hashlib.sha256(data).hexdigest(), len(data))


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def write_manifest(folder: Path, step: int, files: dict[str, FileSum]) -> None:
    """Make ``folder`` a checkpoint. Call it when every file is on the disk.

    Raises:
        OSError: the disk is full or the path cannot be written.
    """
    content = {"format": _FORMAT, "version": _VERSION, "step": step, "files": {name: asdict(item) for name, item in files.items()}}
    write_synced(folder / MANIFEST_NAME, canonical_json(content))


def verify_folder(folder: Path, step: int | None = None) -> int:
    """Check the manifest and every file it names; returns the step it was written at.

    Raises:
        CheckpointError: names the first file that is missing, of another size, or of another sum.
    """
    files, found_step = _read_manifest(folder)
    if step is not None and found_step != step:
        raise _damaged(folder / MANIFEST_NAME, f"it is the manifest of step {found_step}")
    for name, expected in sorted(files.items()):
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise _damaged(path, "the file is missing")
        if path.stat().st_size != expected.bytes:
            raise _damaged(path, f"it has {path.stat().st_size:,} bytes instead of {expected.bytes:,}")
        if _sum_of(path) != expected.sha256:
            raise _damaged(path, "its SHA-256 differs from the manifest")
    return found_step


def _read_manifest(folder: Path) -> tuple[dict[str, FileSum], int]:
    path = folder / MANIFEST_NAME
    try:
        data = read_bytes(path, max_bytes=MAX_JSON_BYTES)
        content = parse_json(data, file=path)
        if canonical_json(content) != data or set(content) != {"format", "version", "step", "files"}:
            raise _damaged(path, "it is not in the form that was written")
        if content["format"] != _FORMAT or content["version"] != _VERSION or type(content["step"]) is not int:
            raise _damaged(path, f"it is not of format {_FORMAT}, version {_VERSION}")
        files = {name: FileSum(**entry) for name, entry in content["files"].items()}
    except CheckpointError:
        raise
    except (MS4Error, TypeError, AttributeError, ValueError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    for name in files:
        if not name or name != Path(name).name or name in {".", "..", MANIFEST_NAME}:
            raise _damaged(path, f"it names {name!r}, which is not a file of this folder")
    return files, content["step"]


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint is damaged: {what}.", file=path, fix="resume from another checkpoint.")


def _sum_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
