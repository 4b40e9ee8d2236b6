"""Copies of programs that everybody may read and only we may write, for when the user that programs run as may not enter our folders.

A copy is made once and named by what was copied; its parts keep the interpreter's shape, less tests and tools.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_copies.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ms4_train.errors import EvaluationError

COPIES = Path("/var/tmp")
# Tests and tools of the standard library, and what only a linker reads.
_LEFT_OUT = (
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "config-*",
    "*.a",
)
_EVERYBODY = stat.S_IROTH | stat.S_IXOTH


@dataclass(frozen=True)
class Piece:
    """A file or folder, and its path in the copy."""

    source: Path
    inside: str


def is_open_to_everybody(path: Path) -> bool:
    """Whether a user with no rights here could read ``path``: every folder above it can be entered, and it can be read."""
    path = path.resolve()
    try:
        if not all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents):
            return False
        mode = path.stat().st_mode
    except OSError:
        return False
    wanted = _EVERYBODY if stat.S_ISDIR(mode) else stat.S_IROTH
    return mode & wanted == wanted


def copy_for_everybody(pieces: Sequence[Piece], storage: Path, *, folders: Sequence[str] = ()) -> Path:
    """The folder below ``storage`` that holds ``pieces`` and the empty ``folders``.

    Raises:
        EvaluationError: it cannot be written, or somebody else could write to it.
    """
    target = storage / f"ms4-sandbox-{_digest(pieces)}"
    if not target.exists():
        try:
            building = Path(tempfile.mkdtemp(prefix=".ms4-sandbox-", dir=storage))
            try:
                _build(pieces, folders, building)
                # Another process may have been faster; its copy is as good.
                with contextlib.suppress(OSError):
                    building.rename(target)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        except OSError as error:
            fix = f"the sandbox keeps a copy of the interpreter in {storage}, because its user may not enter our folders; make room there"
            raise EvaluationError(f"cannot copy the interpreter: {error}", fix=fix) from error
    status = target.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EvaluationError("this copy of the interpreter is not ours alone to write", file=target, fix="remove it; it is made again")
    return target


def _digest(pieces: Sequence[Piece]) -> str:
    lines = [sys.version, str(_LEFT_OUT)]
    for piece in pieces:
        status = piece.source.stat()
        lines.append(f"{piece.source} {piece.inside} {status.st_size} {status.st_mtime_ns} {status.st_ino}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _build(pieces: Sequence[Piece], folders: Sequence[str], building: Path) -> None:
    for piece in pieces:
        target = building / piece.inside
        target.parent.mkdir(parents=True, exist_ok=True)
        if piece.source.is_dir():
            ignored = shutil.ignore_patterns(*_LEFT_OUT)
            shutil.copytree(piece.source, target, symlinks=True, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(piece.source, target)
    for folder in folders:
        (building / folder).mkdir(parents=True, exist_ok=True)
    for folder, _, names in os.walk(building):
        Path(folder).chmod(0o755)
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
