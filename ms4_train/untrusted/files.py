"""Reading whole outside files with a bound on their size. Exercise it: ``pytest tests/ms4_train/untrusted/test_files.py``."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ms4_train.errors import UntrustedInputError

_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        UntrustedInputError: the path is missing, unreadable, or a folder, pipe or device (opening a pipe would block for ever).
    """
    path = Path(path)
    if "\0" in str(path):
        raise UntrustedInputError("a path with a NUL character.", file=repr(str(path)), fix="correct the path.")
    try:
        # O_NONBLOCK makes the opening of a pipe return at once, so that it can be refused below without a race.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UntrustedInputError("there is no such file.", file=path, fix=_nearest_fix(path)) from None
    except OSError as error:
        raise UntrustedInputError(f"cannot be opened ({error.strerror}).", file=path, fix="check the path and its permissions.") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise UntrustedInputError(f"is {what}, but a file is needed.", file=path, fix="give the path of a file.")
    return os.fdopen(descriptor, "rb")


def _nearest_fix(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"check the path; the folder {parent} does not exist either. Relative paths start at the current folder."
    return "check the path; relative paths start at the current folder."


def read_bytes(path: str | Path, *, max_bytes: int) -> bytes:
    """Read a whole file of at most ``max_bytes`` bytes.

    Raises:
        UntrustedInputError: the file is missing, not a regular file, unreadable, or larger than ``max_bytes``.
    """
    with open_regular(path) as handle:
        try:
            data = handle.read(max_bytes + 1)
        except OSError as error:
            raise UntrustedInputError(f"cannot be read ({error.strerror}).", file=path, fix="check the disk.") from None
    if len(data) > max_bytes:
        raise UntrustedInputError(
            f"is larger than the {max_bytes:,} bytes allowed here.", file=path, fix="check that it is the right file."
        )
    return data


def decode_utf8(data: bytes, *, file: str | Path | None = None, line: int | None = None) -> str:
    """Decode UTF-8 text, dropping a byte-order mark.

    Raises:
        UntrustedInputError: the bytes are not UTF-8; ``line`` is counted from the bytes unless given.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = data.count(b"\n", 0, error.start) + 1 if line is None else line
        name = _BOMS.get(data[:2])
        what = f"looks like {name}, not UTF-8." if name else f"is not UTF-8 text (byte 0x{data[error.start]:02x})."
        raise UntrustedInputError(what, file=file, line=where, fix="save the file as UTF-8.") from None


def read_text(path: str | Path, *, max_bytes: int) -> str:
    """Read a whole UTF-8 file of at most ``max_bytes`` bytes, dropping a byte-order mark.

    Raises:
        UntrustedInputError: as ``read_bytes``, or the bytes are not UTF-8.
    """
    return decode_utf8(read_bytes(path, max_bytes=max_bytes), file=path)
