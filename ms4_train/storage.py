"""Writing files so that they are whole or absent, and saying in bytes when a disk is full.

A file is written beside its target under a temporary name, flushed to the disk, renamed, and the folder flushed too; a crash at any
moment leaves the old file or the new one. Exercise it: ``pytest tests/ms4_train/test_storage.py``.

Not covered: folders of several files (``ms4_train.checkpoint`` builds those from these parts), and the temporary file
``.NAME.PID.RANDOM.tmp`` that a killed process leaves beside its target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ms4_train.errors import DiskFullError, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Libraries that write through Rust or C++ report a full disk as text.
_FULL_TEXT = ("no space left on device", "os error 28", "disk quota exceeded", "os error 122", "file too large", "database or disk is full")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether ``error``, or one that it was raised from, says that the disk (or a quota or file-size limit) is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(text in str(error).lower() for text in _FULL_TEXT):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_bytes(path: str | Path) -> int | None:
    """Bytes free for this user where ``path`` is or would be; None where the system does not say."""
    folder = Path(path).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def require_free_bytes(path: str | Path, needed: int) -> None:
    """Check, before writing, that ``needed`` bytes fit where ``path`` is or would be.

    Raises:
        DiskFullError: names the bytes needed, free and missing.
    """
    free = free_bytes(path)
    if free is not None and free < needed:
        raise _full_error(path, needed, free)


def _full_error(path: str | Path, needed: int | None, free: int | None) -> DiskFullError:
    wanted = "" if needed is None else f" {needed:,} bytes are needed,"
    left = "an unknown number of" if free is None else f"{free:,}"
    missing = f", {needed - free:,} are missing" if needed is not None and free is not None and needed > free else ""
    return DiskFullError(
        f"the disk is full:{wanted} {left} bytes are free{missing}.", file=path, fix="free space or choose another folder."
    )


@contextlib.contextmanager
def storage_errors(path: str | Path, needed: int | None = None) -> Iterator[None]:
    """Turn a write's failure inside the block into ``StorageError``.

    Args:
        path: the file or folder being written; named in the message.
        needed: bytes the block writes, where known.

    Raises:
        DiskFullError: the disk is full.
        StorageError: the path cannot be written.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise _full_error(path, needed, free_bytes(path)) from error
        if isinstance(error, FileExistsError | NotADirectoryError):
            raise StorageError(
                "a file stands where a folder is needed.", file=path, fix="move that file, or choose another folder."
            ) from error
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise StorageError(f"cannot be written ({reason}).", file=path, fix="check the folder and its permissions.") from error
        raise


def fsync_folder(folder: str | Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut.

    Raises:
        OSError: the folder cannot be opened or flushed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: str | Path) -> None:
    """Flush a file that another library wrote to the disk.

    Raises:
        OSError: the file cannot be opened or flushed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, flushed to the disk; permissions follow the umask, links are followed.

    Raises:
        StorageError: the disk is full (with bytes needed and free), or the path cannot be written or is a folder or device; nothing is
            left behind.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        # A rename over a device or a pipe would succeed, and replace it.
        raise StorageError("is not a regular file and is not replaced.", file=path, fix="name a file.")
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with storage_errors(path, len(data)):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as ``atomic_write_bytes`` does; line ends are written as they are.

    Raises:
        StorageError: as ``atomic_write_bytes``.
    """
    atomic_write_bytes(path, text.encode("utf-8"))
