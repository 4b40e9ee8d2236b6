"""Writing a folder of files so that it is whole or absent.

Files are written into a hidden folder beside the target, flushed to the disk, and the folder is renamed when everything is in it. A
folder that a killed process left half-written is removed by the next write to the same target.
Exercise it: ``pytest tests/ms4_train/weights/test_folder.py``.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from ms4_train.errors import StorageError
from ms4_train.storage import fsync_file, fsync_folder, require_free_bytes, storage_errors

MARGIN_BYTES = 1 << 16
"""Room for folder entries and small files beside the counted tensors."""


@contextlib.contextmanager
def whole_folder(target: Path, *, needed_bytes: int, replaceable: Sequence[str] | None) -> Iterator[Path]:
    """Give a fresh folder to write into, and make it ``target`` when the block ends without an error.

    Permissions follow the umask, also of files that a library wrote more strictly. When the block fails, nothing is left behind and an
    older ``target`` stays as it was.

    Args:
        target: the folder to make.
        needed_bytes: bytes the block will write; checked against the free space first.
        replaceable: shell patterns of the files that an existing ``target`` may hold to be replaced; None replaces only an empty folder.

    Raises:
        StorageError: the disk is full, the place cannot be written, or ``target`` exists with other content.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    refuse_foreign_content(target, replaceable)
    created = _make_parents(target)
    temporary = target.parent / _hidden_name(target, "partial")
    try:
        with storage_errors(target, needed_bytes):
            _sweep(target)
            require_free_bytes(target, needed_bytes + MARGIN_BYTES)
            temporary.mkdir()
            yield temporary
            _settle(temporary)
            _put_in_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in reversed(created):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def refuse_foreign_content(target: Path, replaceable: Sequence[str] | None) -> None:
    """Raise ``StorageError`` where ``target`` holds what ``whole_folder`` would not replace."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise StorageError("exists and is not a folder.", file=target, fix="choose another name.")
    names = sorted(entry.name for entry in target.iterdir())
    foreign = [name for name in names if replaceable is None or not any(fnmatch.fnmatchcase(name, pattern) for pattern in replaceable)]
    if foreign:
        shown = ", ".join(foreign[:3]) + (" ..." if len(foreign) > 3 else "")
        raise StorageError(f"exists and holds {shown}.", file=target, fix="choose another folder, or delete this one first.")


def _make_parents(target: Path) -> list[Path]:
    missing = [folder for folder in target.parents if not folder.exists()][::-1]
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _hidden_name(target: Path, kind: str) -> str:
    return f".{target.name[:100]}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(3)}.{kind}"


def _sweep(target: Path) -> None:
    """Remove what dead processes of this machine left beside the target; a replaced folder only once its successor is there."""
    for kind in ("partial", "old"):
        if kind == "old" and not target.exists():
            continue
        for left in target.parent.glob(f".{_escape(target.name[:100])}.{_escape(socket.gethostname())}.*.{kind}"):
            process = left.name.split(".")[-3]
            if process.isdigit() and not Path(f"/proc/{process}").exists():
                shutil.rmtree(left, ignore_errors=True)


def _escape(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _settle(folder: Path) -> None:
    """Set file modes to what the umask gives, and flush files and folder."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.iterdir():
        path.chmod(mode)
        fsync_file(path)
    fsync_folder(folder)


def _put_in_place(temporary: Path, target: Path) -> None:
    old: Path | None = None
    if target.exists():
        old = target.parent / _hidden_name(target, "old")
        target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        if old is not None:
            old.rename(target)
        raise
    fsync_folder(target.parent)
    if old is not None and old.is_symlink():
        old.unlink()
    elif old is not None:
        shutil.rmtree(old, ignore_errors=True)
