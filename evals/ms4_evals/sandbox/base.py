"""What a sandbox is: it runs one Python program under limits and says, from outside the program, how it ended.

Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_base.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, get_args

Status = Literal["exited", "signalled", "wall-time", "cpu-time", "memory", "output", "sandbox-error"]
STATUSES: tuple[Status, ...] = get_args(Status)

STDERR_KEPT = 64 * 1024
"""Bytes of standard error that an outcome keeps: the last ones, where a traceback ends."""


@dataclass(frozen=True)
class Limits:
    """What one run may use. Time, memory and processes are counted over everything the program starts.

    Args:
        wall_seconds: from the program's start until everything it started is killed.
        cpu_seconds: user and system time.
        memory_bytes: resident memory of all processes together.
        processes: processes and threads at a time, the program's first one included.
        file_bytes: size of one file, and of all files in the working folder together.
        output_bytes: bytes on standard output; the same number again on standard error.
        open_files: descriptors per process.
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 6.0
    memory_bytes: int = 1 << 30
    processes: int = 16
    file_bytes: int = 32 << 20
    output_bytes: int = 8 << 20
    open_files: int = 64


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    ``status`` is ``exited`` (``exit_code`` is set), ``signalled`` (``signal`` is set: a signal that no limit of ours sent), the limit that
    was passed, or ``sandbox-error``: the sandbox, not the program, failed; ``stderr`` then says why.
    """

    status: Status
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


class Session(Protocol):
    """A program that is being talked to through its standard input and output."""

    def send(self, data: bytes) -> None:
        """Writes to the program's standard input; what a program that has ended can no longer read is dropped."""
        ...

    def read_line(self, timeout: float) -> bytes | None:
        """The next line of standard output with its newline; None after ``timeout`` seconds, or at the end of the output."""
        ...

    def close(self) -> Outcome:
        """Closes standard input, gives the program what is left of its limits to end, and says how it ended.

        ``Outcome.stdout`` holds what ``read_line`` has not returned. A second call returns the same outcome.
        """
        ...


class Sandbox(Protocol):
    """Thread-safe; a context manager. Nothing that a run started lives on after ``run`` or ``Session.close`` returns."""

    @property
    def sandbox_id(self) -> str:
        """``bubblewrap/0.11.0``, or ``none``: stored beside every grade."""
        ...

    @property
    def is_safe(self) -> bool:
        """Whether programs are kept from this machine."""
        ...

    @property
    def packages(self) -> Mapping[str, str]:
        """Packages beside the standard library that programs may import: name -> version."""
        ...

    def run(self, files: Mapping[str, bytes], arguments: Sequence[str], *, stdin: bytes = b"", limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """Runs the Python interpreter in a fresh working folder that holds ``files``.

        Args:
            files: name relative to the working folder -> content.
            arguments: what follows the interpreter, as in ``("-I", "main.py")``.
        """
        ...

    def start(self, files: Mapping[str, bytes], arguments: Sequence[str], *, limits: Limits = DEFAULT_LIMITS) -> Session:
        """Starts the interpreter in the same way, to talk to the program."""
        ...

    def close(self) -> None:
        """Ends every session that is still open."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...
