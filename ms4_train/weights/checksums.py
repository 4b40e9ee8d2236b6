"""SHA256SUMS: one line per file of a model folder, ``<64 hexadecimal digits>  <name>``, as the program ``sha256sum`` writes and checks it.

The file is written last and whole, so that a folder that has it was once complete; ``sha256sum -c SHA256SUMS`` needs nothing of ours.
Exercise it: ``pytest tests/ms4_train/weights/test_checksums.py``.

Not covered: a person who changes a file and its line together (sums find damage, not forgery), and files in folders below.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ms4_train.errors import WeightsError
from ms4_train.storage import atomic_write_text
from ms4_train.untrusted import read_text
from ms4_train.untrusted.files import open_regular
from ms4_train.weights.layouts.names import and_more

SUMS_FILE = "SHA256SUMS"
MAX_SUMS_BYTES = 16 << 20
READ_BYTES = 8 << 20
"""Bytes per read: large enough that threads spend their time in hashing, which runs outside Python's lock."""
MAX_NAME_BYTES = 255

Progress = Callable[[int], None]
"""Told how many more bytes were hashed; called from several threads."""

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is the name of a file in a folder itself: no separators, control characters, ``.`` or ``..``, 255 bytes at most."""
    if not name.isprintable() or "/" in name or "\\" in name or name in {"", ".", ".."}:
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES


def file_sha256(path: str | Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Args:
        path: a regular file.
        progress: told the number of bytes of each read.

    Raises:
        UntrustedInputError: the file is missing or not a regular file.
        WeightsError: the disk fails while it is read.
    """
    return hash_file(path, [hashlib.sha256()], progress)[0]


def hash_file(path: str | Path, digests: list[hashlib._Hash], progress: Progress | None = None) -> list[str]:
    """Feed a file once to several hashes, in reads of 8 MiB; returns their hexadecimal digits.

    Raises:
        UntrustedInputError, WeightsError: as ``file_sha256``.
    """
    buffer = memoryview(bytearray(READ_BYTES))
    with open_regular(path) as handle:
        raw = handle.fileno()
        while True:
            try:
                count = os.readv(raw, [buffer])
            except OSError as error:
                raise WeightsError(f"cannot be read ({error.strerror}).", file=path, fix="check the disk.") from error
            if not count:
                return [digest.hexdigest() for digest in digests]
            for digest in digests:
                digest.update(buffer[:count])
            if progress:
                progress(count)


def folder_sums(
    folder: str | Path, names: Iterable[str], *, progress: Progress | None = None, threads: int | None = None
) -> dict[str, str]:
    """SHA-256 of each named file of a folder, several at a time.

    Args:
        folder: where the files are.
        names: plain file names.
        progress: as in ``file_sha256``.
        threads: files read at once; default: one per core, eight at most.

    Raises:
        UntrustedInputError, WeightsError: as ``file_sha256``, for the first file that cannot be read.
    """
    ordered = list(dict.fromkeys(names))
    stop = threading.Event()

    def one(name: str) -> str:
        # After a failure or Ctrl-C the files that wait are not read any more.
        return "" if stop.is_set() else file_sha256(Path(folder) / name, progress)

    with ThreadPoolExecutor(max_workers=threads or min(8, os.cpu_count() or 1)) as pool:
        try:
            return dict(zip(ordered, pool.map(one, ordered), strict=True))
        except BaseException:
            stop.set()
            raise


def write_sums(folder: str | Path, sums: Mapping[str, str]) -> None:
    """Write ``SHA256SUMS``, sorted by name, whole or not at all.

    Args:
        folder: the model folder.
        sums: file name -> 64 hexadecimal digits.

    Raises:
        WeightsError: a name or a sum that has no place in such a file.
        StorageError: the disk is full or the folder cannot be written.
    """
    for name, digest in sums.items():
        if not is_plain_name(name) or name == SUMS_FILE or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise WeightsError(
                f"{name!r} with the sum {digest!r} cannot be written.", file=Path(folder) / SUMS_FILE, fix="rename the file."
            )
    atomic_write_text(Path(folder) / SUMS_FILE, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def read_sums(folder: str | Path) -> dict[str, str] | None:
    """The content of ``SHA256SUMS``: name -> 64 hexadecimal digits in lower case; None where there is no such file.

    Raises:
        WeightsError: a malformed line, a name that is not a plain file name, or a name that comes twice.
        UntrustedInputError: the file is too large, not a regular file, or not text.
    """
    path = Path(folder) / SUMS_FILE
    if not path.exists() and not path.is_symlink():
        return None
    sums: dict[str, str] = {}
    text = read_text(path, max_bytes=MAX_SUMS_BYTES)
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise _bad_line(path, number, "is not a SHA-256 sum, two spaces and a name.")
        digest, name = match[1].lower(), match[2]
        if not is_plain_name(name) or name == SUMS_FILE:
            raise _bad_line(path, number, f"names {name!r}, which is not a file of this folder.")
        if name in sums:
            raise _bad_line(path, number, f"names {name} a second time.")
        sums[name] = digest
    return sums


def _bad_line(path: Path, line: int, what: str) -> WeightsError:
    return WeightsError(f"the line {what}", file=path, line=line, fix="write the sums again, or get the folder again from its source.")


def check_sums(
    folder: str | Path, names: Iterable[str] | None = None, *, progress: Progress | None = None, threads: int | None = None
) -> dict[str, str]:
    """Compare a folder's files with its ``SHA256SUMS``.

    Files that the sums do not name are not looked at; the caller, who knows which ones matter, compares names.

    Args:
        folder: the model folder.
        names: check only these; default: every file that the sums name.
        progress: as in ``file_sha256``; ``bytes_to_check`` gives the total.
        threads: as in ``folder_sums``.

    Returns:
        name -> sum of what was checked.

    Raises:
        WeightsError: there is no ``SHA256SUMS``, it is malformed or does not name a file asked for, or files are missing or differ: the
            first one is named, the others are counted.
        UntrustedInputError: as ``read_sums``.
    """
    folder = Path(folder)
    sums = read_sums(folder)
    if sums is None:
        raise WeightsError(f"there is no {SUMS_FILE}.", file=folder, fix="get the folder again from its source.")
    wanted = sorted(sums) if names is None else list(dict.fromkeys(names))
    unnamed = [name for name in wanted if name not in sums]
    if unnamed:
        raise WeightsError(f"has no sum for {unnamed[0]}{and_more(unnamed)}.", file=folder / SUMS_FILE, fix="write the sums again.")
    missing = {name for name in wanted if not (folder / name).is_file()}
    found = folder_sums(folder, (name for name in wanted if name not in missing), progress=progress, threads=threads)
    bad = [name for name in wanted if name in missing or found[name] != sums[name]]
    if bad:
        what = "the file is missing" if bad[0] in missing else f"its SHA-256 differs from {SUMS_FILE}"
        raise WeightsError(f"{what}{and_more(bad)}.", file=folder / bad[0], fix="get the file again from its source.")
    return {name: sums[name] for name in wanted}


def bytes_to_check(folder: str | Path, names: Iterable[str]) -> int:
    """Bytes of the named files that are there: what a progress bar counts to."""
    return sum((Path(folder) / name).stat().st_size for name in names if (Path(folder) / name).is_file())
