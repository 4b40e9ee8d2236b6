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
from collections.abc import Mapping, Sequence
from pathlib import Path

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.launch import Descriptors, interpreter, keeper_command
from ms4_evals.sandbox.launching import LaunchingSandbox
from ms4_evals.sandbox.processes import end_tree, tasks_of


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


class UnsafeSandbox(LaunchingSandbox):
    """No sandbox. Whoever uses it marks what comes of it: ``is_safe`` is false, ``sandbox_id`` is ``none``."""

    is_safe = False
    sandbox_id = "none"
    packages: Mapping[str, str] = {}
    """All that is installed here, which nobody keeps a list of: its rows are marked, not compared."""

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
