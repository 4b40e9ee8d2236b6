"""What every sandbox does that starts a process per program: runs followed to their end, sessions that are known and ended.

Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_launching.py``.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from ms4_evals.sandbox.base import DEFAULT_LIMITS, Limits, Outcome
from ms4_evals.sandbox.launch import checked_files, memory_file
from ms4_evals.sandbox.session import RunningSession
from ms4_evals.sandbox.watch import Child, Watch


class LaunchingSandbox(ABC):
    """Satisfies ``Sandbox``, but for what its heirs are called and how they start a program."""

    def __init__(self) -> None:
        self._sessions: list[RunningSession] = []
        self._lock = threading.Lock()

    @abstractmethod
    def _launch(self, files: Mapping[str, bytes], arguments: Sequence[str], stdin: int, limits: Limits) -> Child:
        """Starts a program; takes over the descriptor ``stdin``.

        Raises:
            OSError: it did not start.
        """

    def run(self, files: Mapping[str, bytes], arguments: Sequence[str], *, stdin: bytes = b"", limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """Runs one program to its end."""
        files = checked_files(files)
        begun = time.monotonic()
        try:
            child = self._launch(files, arguments, memory_file(stdin), limits)
        except OSError as error:
            return Outcome("sandbox-error", None, None, b"", f"sandbox: {error}".encode(), time.monotonic() - begun, 0.0, 0)
        return Watch(child, limits).follow()

    def start(self, files: Mapping[str, bytes], arguments: Sequence[str], *, limits: Limits = DEFAULT_LIMITS) -> RunningSession:
        """Starts a program to talk to."""
        checked = checked_files(files)
        session = RunningSession(lambda stdin: self._launch(checked, arguments, stdin, limits), limits)
        with self._lock:
            self._sessions = [known for known in self._sessions if known.is_open] + [session]
        return session

    def close(self) -> None:
        """Ends the sessions that are still open."""
        with self._lock:
            sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
