"""Pipes, files in memory and the keeper's command: what every kind of sandbox needs to start a program.

Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_launch.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ms4_evals.sandbox.base import Limits
from ms4_train.errors import EvaluationError

_KEEPER = Path(__file__).with_name("keeper.py")
# Libraries that are mapped and stacks that are reserved take addresses but no memory; the watcher bounds memory itself.
ADDRESS_SLACK_BYTES = 512 << 20
_MAX_FILES = 64
_SEALS = 0x1 | 0x2 | 0x4 | 0x8
"""F_SEAL_SEAL, SHRINK, GROW, WRITE (fcntl(2)): a program can read such a file and nothing else."""


def checked_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """``files``, when every name stays inside the working folder.

    Raises:
        EvaluationError: a name that is absolute, empty, or goes up, or too many files.
    """
    if len(files) > _MAX_FILES:
        raise EvaluationError(f"a program of {len(files)} files", fix=f"at most {_MAX_FILES}")
    for name in files:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or name.endswith("/"):
            raise EvaluationError(f"{name!r} is no file name inside the working folder", fix="use a relative name without '..'")
    return dict(files)


def memory_file(data: bytes) -> int:
    """A descriptor from which ``data`` is read, and that cannot be written: a file, so that no thread has to feed a pipe."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        if hasattr(os, "memfd_create"):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Descriptors:
    """Descriptors that are closed together: those of the child once it has them, all of them when starting fails."""

    def __init__(self) -> None:
        self._open: list[int] = []

    def pipe(self) -> tuple[int, int]:
        """Read end, write end."""
        ends = os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        self._open += ends
        return ends

    def add(self, descriptor: int) -> int:
        """Takes over ``descriptor``."""
        self._open.append(descriptor)
        return descriptor

    def keep(self, descriptor: int) -> None:
        """Hands ``descriptor`` back to the caller."""
        self._open.remove(descriptor)

    def close(self) -> None:
        """Closes what was not kept."""
        for descriptor in self._open:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._open.clear()


def keeper_command(python: str, report: int, limits: Limits, program: Sequence[str], *, is_isolated: bool, processes: int) -> list[str]:
    """The command that runs the keeper (``keeper.py``) on ``program``.

    Args:
        python: the interpreter.
        report: the descriptor that the keeper writes to.
        processes: for RLIMIT_NPROC, which counts more than the program's own.
    """
    settings = {
        "is_isolated": int(is_isolated),
        # Whole seconds, and only in case the watcher is late.
        "cpu_seconds": math.ceil(limits.cpu_seconds) + 1,
        "address_bytes": limits.memory_bytes + ADDRESS_SLACK_BYTES,
        "processes": processes,
        "file_bytes": limits.file_bytes,
        "open_files": limits.open_files,
        "inodes": max(1024, limits.file_bytes >> 12),
    }
    source = _KEEPER.read_text(encoding="utf-8")
    values = [f"{name}={value}" for name, value in settings.items()]
    return [python, "-I", "-S", "-B", "-c", source, str(report), *values, "--", *program]


def interpreter() -> str:
    """The interpreter that runs this."""
    return sys.executable
