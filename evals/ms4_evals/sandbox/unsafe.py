"""Runs programs with no isolation at all: for machines that have no sandbox, when asked for by name, and for negative controls.

A program runs as us, with our files and our network. The limits are the same as far as they can be without a namespace: time, memory and
processes are looked at some forty times a second and everything below the program is then killed; root is not bound by the limit on
processes between two looks; files are bounded one by one; a program that hides from ``/proc`` is not found.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_unsafe.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ms4_evals.sandbox.base import DEFAULT_LIMITS, Limits, Outcome
from ms4_evals.sandbox.launch import Descriptors, checked_files, interpreter, keeper_command, memory_file
from ms4_evals.sandbox.processes import end_tree, tasks_of
from ms4_evals.sandbox.session import RunningSession
from ms4_evals.sandbox.watch import Watch


class UnsafeChild:
    """A started keeper, a subreaper: what loses its parent comes below it."""

    limits_processes = True

    def __init__(self, process: subprocess.Popen[bytes], stdout: int, stderr: int, report: int, folder: Path) -> None:
        self.process = process
        self.stdout = stdout
        self.stderr = stderr
        self.report = report
        self._folder = folder

    def keeper(self) -> int | None:
        """The process that we started."""
        return self.process.pid

    def end(self) -> None:
        """Kills the tree."""
        if self.process.returncode is None:
            end_tree(self.process.pid)

    def release(self) -> None:
        """Removes the working folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


class UnsafeSandbox:
    """No sandbox. Whoever uses it marks what comes of it: ``is_safe`` is false, ``sandbox_id`` is ``none``."""

    is_safe = False
    sandbox_id = "none"
    packages: Mapping[str, str] = {}
    """All that is installed here, which nobody keeps a list of: its rows are marked, not compared."""

    def __init__(self) -> None:
        self._sessions: list[RunningSession] = []
        self._lock = threading.Lock()

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

    def _launch(self, files: Mapping[str, bytes], arguments: Sequence[str], stdin: int, limits: Limits) -> UnsafeChild:
        """Takes over ``stdin``."""
        opened = Descriptors()
        opened.add(stdin)
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="ms4-unsafe-"))
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            (stdout, stdout_end), (stderr, stderr_end), (report, report_end) = (opened.pipe() for _ in range(3))
            # This limit counts everything that the user runs.
            processes = limits.processes + tasks_of(os.geteuid())
            program = [interpreter(), *arguments]
            command = keeper_command(interpreter(), report_end, limits, program, is_isolated=False, processes=processes)
            environment = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
            environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout_end,
                stderr=stderr_end,
                pass_fds=[report_end],
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
            for descriptor in (stdout, stderr, report):
                opened.keep(descriptor)
            return UnsafeChild(process, stdout, stderr, report, folder)
        except OSError:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            opened.close()

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
