"""What every sandbox does that starts a process per program: runs followed to their end, runs and sessions that are known and ended.

Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_launching.py``.
"""

from __future__ import annotations

import contextlib
import os
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
        self._running: set[Child] = set()
        self._is_closed = False
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
            child = self._launch_unless_closed(files, arguments, memory_file(stdin), limits)
        except OSError as error:
            return Outcome("sandbox-error", None, None, b"", f"sandbox: {error}".encode(), time.monotonic() - begun, 0.0, 0)
        with self._lock:
            self._running.add(child)
            if self._is_closed:
                child.end()
        try:
            return Watch(child, limits).follow()
        finally:
            with self._lock:
                self._running.discard(child)

    def start(self, files: Mapping[str, bytes], arguments: Sequence[str], *, limits: Limits = DEFAULT_LIMITS) -> RunningSession:
        """Starts a program to talk to."""
        checked = checked_files(files)
        session = RunningSession(lambda stdin: self._launch_unless_closed(checked, arguments, stdin, limits), limits)
        with self._lock:
            self._sessions = [known for known in self._sessions if known.is_open] + [session]
            is_closed = self._is_closed
        if is_closed:
            session.abort()
        return session

    def _launch_unless_closed(self, files: Mapping[str, bytes], arguments: Sequence[str], stdin: int, limits: Limits) -> Child:
        if self._is_closed:
            os.close(stdin)
            raise OSError("it is closed")
        return self._launch(files, arguments, stdin, limits)

    def close(self) -> None:
        """Ends what still runs, in whatever thread, and starts nothing more: both come out as the sandbox's failure."""
        with self._lock:
            self._is_closed = True
            sessions, self._sessions = self._sessions, []
            for child in self._running:
                with contextlib.suppress(OSError):
                    child.end()
        for session in sessions:
            session.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
