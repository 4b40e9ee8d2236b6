"""MANIFEST.json: the SHA-256 and size of every file of a checkpoint. A folder without a matching manifest is not a checkpoint.

It is written last, in one canonical form and with a sum of itself, so that any changed bit in it or in a file it names is found before a
tensor is read. Damage is what was read and is wrong, or a file that its folder does not list; a read that the system refuses proves nothing
of what a file holds, and is told apart. Exercise it: ``pytest tests/ms4_train/checkpoint/test_manifest.py``.

Not covered: a person who changes a file and the manifest together; sums find damage, not forgery.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ms4_train.errors import CheckpointError, MS4Error, UntrustedInputError
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


class DamagedError(CheckpointError):
    """A checkpoint that does not hold what was written: by what was read, or because its folder does not list a file."""


class UnreadableError(CheckpointError):
    """The system did not let a checkpoint be read, so nothing is known of what it holds.

    ``reason`` is the system's; ``is_absent`` says that the folder itself is not there, seen from this machine.
    """

    def __init__(self, path: Path, reason: str, *, is_absent: bool = False) -> None:
        self.reason = reason
        self.is_absent = is_absent
        fix = "check the disk, the mount and the permissions, and try again."
        super().__init__(f"the checkpoint cannot be read ({reason}).", file=path, fix=fix)


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
        DamagedError: there is none, or it is damaged.
        UnreadableError: the system does not let it be read.
        OtherVersionError: it is whole, but of another version.
    """
    path = folder / MANIFEST_NAME
    try:
        data = read_bytes(path, max_bytes=MAX_JSON_BYTES)
    except UntrustedInputError as error:
        if isinstance(error.__context__, OSError):  # else it was found to be no file, or far too large
            raise _not_read(path, error.__context__) from error
        raise damaged(path, f"it is no manifest ({error.message})") from error
    try:
        content = parse_json(data, file=path)
        if canonical_json(content) != data or content.get("format") != _FORMAT:
            raise damaged(path, "it is not in the form that was written")
        _check_version(path, content)
        if set(content) != _KEYS:
            raise damaged(path, "it is not in the form that was written")
        files = {name: FileSum(**entry) for name, entry in content["files"].items()}
    except CheckpointError:
        raise
    except (MS4Error, TypeError, AttributeError, ValueError) as error:
        raise damaged(path, f"it is no manifest ({error})") from error
    for name in files:
        if not name or "\0" in name or name != Path(name).name or name in {".", "..", MANIFEST_NAME}:
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
        DamagedError: names the first file that is missing, of another size, or of another sum.
        UnreadableError: names the first file that the system does not let be read.
        OtherVersionError: it is of another version.
    """
    manifest = read_manifest(folder)
    check_step(folder, manifest, step)
    verify_files(folder, manifest.files)
    return manifest.step


def check_step(folder: Path, manifest: Manifest, step: int | None) -> None:
    """Refuse a folder that has the name of another step.

    Raises:
        DamagedError: the manifest is not of ``step``; None takes any.
    """
    if step is not None and manifest.step != step:
        raise damaged(folder / MANIFEST_NAME, f"it is the manifest of step {manifest.step}")


def verify_files(folder: Path, files: Mapping[str, FileSum]) -> None:
    """Check these files against their sums.

    Raises:
        DamagedError: names the first one that is missing, or of another size or sum.
        UnreadableError: names the first one that the system does not let be read.
    """
    for name, expected in sorted(files.items()):
        path = folder / name
        check_size(path, expected)
        try:
            found = _sum_of(path)
        except OSError as error:
            raise _not_read(path, error) from error
        if found != expected.sha256:
            raise damaged(path, "its SHA-256 differs from the manifest")


def check_size(path: Path, expected: FileSum) -> None:
    """Check that a file of a checkpoint is there, as a file, with its size.

    Raises:
        DamagedError, UnreadableError: as ``verify_files``.
    """
    try:
        found = path.lstat()
    except OSError as error:
        raise _not_read(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise damaged(path, "the file is missing, and something else has its name")
    if found.st_size != expected.bytes:
        raise damaged(path, f"it has {found.st_size:,} bytes instead of {expected.bytes:,}")


def _not_read(path: Path, error: OSError) -> CheckpointError:
    """What it means that a file could not be read: it is missing where its folder can be listed and does not have it."""
    if not is_absence(error):
        return UnreadableError(path, error.strerror or str(error))
    try:
        names = os.listdir(path.parent)  # noqa: PTH208 - names, not paths
    except OSError as of_folder:
        return UnreadableError(path.parent, of_folder.strerror or str(of_folder), is_absent=is_absence(of_folder))
    if path.name in names:
        return UnreadableError(path, error.strerror or str(error))
    return damaged(path, "the file is missing")


def is_absence(error: OSError) -> bool:
    """Whether the system says that there is no such file or folder, and not that it could not look."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR)


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


def damaged(path: Path, what: str) -> DamagedError:
    """The error of a checkpoint that cannot be used."""
    return DamagedError(f"the checkpoint is damaged: {what}.", file=path, fix="resume from another checkpoint.")


def _sum_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
