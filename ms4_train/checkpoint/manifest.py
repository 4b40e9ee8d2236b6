"""MANIFEST.json: the SHA-256 and size of every file of a checkpoint. A folder without a matching manifest is not a checkpoint.

It is written last, in one canonical form and with a sum of itself, so that any changed bit in it or in a file it names is found before a
tensor is read. Exercise it: ``pytest tests/ms4_train/checkpoint/test_manifest.py``.

Not covered: a person who changes a file and the manifest together; sums find damage, not forgery.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ms4_train.errors import CheckpointError, MS4Error
from ms4_train.untrusted import parse_json, read_bytes

MANIFEST_NAME = "MANIFEST.json"
MAX_JSON_BYTES = 1 << 30
VERSION = 2
CHUNK_BYTES = 4 << 20
"""Written and summed at a time, so that a file's bytes are in the cache when they are summed."""
_FORMAT = "ms4-run-state"
_VERSION_1_KEYS = {"format", "version", "step", "files"}
_KEYS = _VERSION_1_KEYS | {"mesh", "configuration_sha256", "versions", "manifest_sha256"}


@dataclass(frozen=True)
class FileSum:
    """Identity of one file's bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        step: optimizer steps done.
        files: name -> sum of every file but the manifest.
        mesh: ``world_size``, ``expert_parallel_size`` and ``zero_stage`` of the run that wrote it.
        configuration_sha256: of the canonical JSON of the run's whole configuration.
        versions: of the programs that wrote it; None for one that was not installed.
    """

    step: int
    files: dict[str, FileSum]
    mesh: dict[str, int] = field(default_factory=dict)
    configuration_sha256: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)


class OtherVersionError(CheckpointError):
    """A checkpoint that another version of this program wrote. Nothing is wrong with it, so it is not set aside."""


def write_synced(path: Path, *parts: bytes | memoryview, proceed: Callable[[int], object] | None = None) -> FileSum:
    """Write a new file, flush it to the disk, and return its sum. The sum is of the bytes in memory, not of what a disk gave back.

    Args:
        path: must not exist.
        parts: the file's bytes, one part after the other; they are never joined or copied.
        proceed: called with the number of bytes of each chunk before it is written; may raise to end the writing.

    Raises:
        OSError: the disk is full or the path cannot be written; what was written of the file is deleted, so that its space is free again.
    """
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for part in parts:
            view = memoryview(part)
            for begin in range(0, len(view), CHUNK_BYTES):
                chunk = view[begin : begin + CHUNK_BYTES]
                if proceed is not None:
                    proceed(len(chunk))
                digest.update(chunk)
                size += len(chunk)
                while chunk:
                    chunk = chunk[os.write(descriptor, chunk) :]
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - beside os.open and os.write
        raise
    finally:
        os.close(descriptor)
    return FileSum(digest.hexdigest(), size)


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make ``folder`` a checkpoint. Call it when every file is on the disk.

    Raises:
        OSError: the disk is full or the path cannot be written.
    """
    content: dict[str, Any] = {"format": _FORMAT, "version": VERSION, **asdict(manifest)}
    write_synced(folder / MANIFEST_NAME, canonical_json({**content, "manifest_sha256": _own_sum(content)}))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, checked in itself; the files it names are not looked at.

    Raises:
        CheckpointError: there is none, or it is damaged.
        OtherVersionError: it is whole, but of another version.
    """
    path = folder / MANIFEST_NAME
    try:
        data = read_bytes(path, max_bytes=MAX_JSON_BYTES)
        content = parse_json(data, file=path)
        if canonical_json(content) != data or content.get("format") != _FORMAT:
            raise damaged(path, "it is not in the form that was written")
        _check_version(path, content)
        if set(content) != _KEYS:
            raise damaged(path, "it is not in the form that was written")
        files = {name: FileSum(**entry) for name, entry in content["files"].items()}
    except CheckpointError:
        raise
    except (MS4Error, OSError, TypeError, AttributeError, ValueError) as error:
        raise damaged(path, f"it cannot be read ({error})") from error
    for name in files:
        if not name or name != Path(name).name or name in {".", "..", MANIFEST_NAME}:
            raise damaged(path, f"it names {name!r}, which is not a file of this folder")
    return Manifest(content["step"], files, content["mesh"], content["configuration_sha256"], content["versions"])


def _check_version(path: Path, content: dict[str, Any]) -> None:
    """A wrong version number is damage, unless the rest proves that it was written so."""
    version = content.get("version")
    if version == VERSION or version == 1:
        other = version == 1 and set(content) == _VERSION_1_KEYS
    else:
        other = type(version) is int
    summed = {key: value for key, value in content.items() if key != "manifest_sha256"}
    if not (version == 1 and other) and content.get("manifest_sha256") != _own_sum(summed):
        raise damaged(path, "its own sum is wrong")
    if other:
        raise OtherVersionError(
            f"the checkpoint is of format version {version}; this program reads version {VERSION}.",
            file=path,
            fix="go on with the version of ms4-train that wrote it, or start again with training.resume_from_checkpoint=never.",
        )


def _own_sum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()


def verify_folder(folder: Path, step: int | None = None) -> int:
    """Check the manifest and every file it names; returns the step it was written at.

    Raises:
        CheckpointError: names the first file that is missing, of another size, or of another sum.
        OtherVersionError: it is of another version.
    """
    manifest = read_manifest(folder)
    check_step(folder, manifest, step)
    verify_files(folder, manifest.files)
    return manifest.step


def check_step(folder: Path, manifest: Manifest, step: int | None) -> None:
    """Refuse a folder that has the name of another step.

    Raises:
        CheckpointError: the manifest is not of ``step``; None takes any.
    """
    if step is not None and manifest.step != step:
        raise damaged(folder / MANIFEST_NAME, f"it is the manifest of step {manifest.step}")


def verify_files(folder: Path, files: Mapping[str, FileSum]) -> None:
    """Check these files against their sums.

    Raises:
        CheckpointError: names the first one that is missing, cannot be read, or is of another size or sum.
    """
    for name, expected in sorted(files.items()):
        path = folder / name
        try:
            if not path.is_file() or path.is_symlink():
                raise damaged(path, "the file is missing")
            if path.stat().st_size != expected.bytes:
                raise damaged(path, f"it has {path.stat().st_size:,} bytes instead of {expected.bytes:,}")
            if _sum_of(path) != expected.sha256:
                raise damaged(path, "its SHA-256 differs from the manifest")
        except OSError as error:
            raise damaged(path, f"it cannot be read ({error.strerror or error})") from error


def files_of_rank(files: Mapping[str, FileSum], rank: int, ranks: int) -> dict[str, FileSum]:
    """This rank's part of the files, when ``ranks`` share out the reading: each file goes to one, the large ones first and evenly."""
    loads = [0] * ranks
    own: dict[str, FileSum] = {}
    for name, item in sorted(files.items(), key=lambda entry: (-entry[1].bytes, entry[0])):
        lightest = loads.index(min(loads))
        loads[lightest] += item.bytes
        if lightest == rank:
            own[name] = item
    return own


def damaged(path: Path, what: str) -> CheckpointError:
    """The error of a checkpoint that cannot be used."""
    return CheckpointError(f"the checkpoint is damaged: {what}.", file=path, fix="resume from another checkpoint.")


def _sum_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
