"""What a tree of processes uses, read from ``/proc``, and how all of it is ended.

The first process of a tree is its keeper (``keeper.py``), which is not counted. Numbers: proc(5), ``/proc/pid/stat``, ``statm``,
``smaps_rollup``, ``task/tid/children``. Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_processes.py``.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")
# Fields of /proc/pid/stat after the command name, counted from 0: utime, stime, cutime, cstime, num_threads.
_UTIME, _STIME, _CUTIME, _CSTIME, _THREADS = 11, 12, 13, 14, 17


@dataclass(frozen=True)
class Usage:
    """Of all processes below a keeper together: resident bytes, CPU seconds (ended ones included), and processes and threads alive."""

    resident_bytes: int
    cpu_seconds: float
    tasks: int


def can_list_children() -> bool:
    """Whether the kernel says which children a process has (``CONFIG_PROC_CHILDREN``); without it a tree cannot be watched."""
    return Path(f"/proc/self/task/{os.getpid()}/children").exists()


def children(process: int) -> list[int]:
    """The children of all threads of ``process``; none when it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):  # noqa: PTH208 - read many times a second
            with contextlib.suppress(OSError), open(f"/proc/{process}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
    return found


def descendants(process: int) -> Iterator[int]:
    """Everything below ``process``, parents before children."""
    waiting = children(process)
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if found not in seen:
            seen.add(found)
            yield found
            waiting += children(found)


def measure(keeper: int, memory_limit: int) -> Usage:
    """What everything below ``keeper`` uses.

    Memory that processes share is counted once for each of them first, which is quick; only when that passes ``memory_limit`` is it divided
    among them (Pss), as far as the kernel lets us look.
    """
    processes = list(descendants(keeper))
    resident, tasks = 0, 0
    ticks = sum(_stat(keeper)[_CUTIME : _CSTIME + 1])
    for process in processes:
        fields = _stat(process)
        ticks += sum(fields[_UTIME : _CSTIME + 1])
        tasks += fields[_THREADS]
        resident += _resident(process)
    if resident > memory_limit and len(processes) > 1:
        resident = sum(_proportional(process) for process in processes)
    return Usage(resident, ticks / _TICKS, tasks)


def _stat(process: int) -> list[int]:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123
            # The name, in parentheses, may hold anything; the state after it is a letter.
            return [0, *map(int, file.read().rpartition(b")")[2].split()[1:])]
    except (OSError, ValueError):
        return [0] * 50


def _resident(process: int) -> int:
    try:
        with open(f"/proc/{process}/statm", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def _proportional(process: int) -> int:
    try:
        with open(f"/proc/{process}/smaps_rollup", "rb") as file:  # noqa: PTH123
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:"))
    except (OSError, ValueError, StopIteration):
        return _resident(process)


def end_tree(keeper: int, seconds: float = 1.0) -> None:
    """Ends everything below ``keeper``, then ``keeper``, without the help of a namespace.

    All are stopped before the first is killed, so that none can start another meanwhile. The keeper is a subreaper: what loses its parent
    comes below it. It gets ``seconds`` to report.
    """
    for wanted in (signal.SIGSTOP, signal.SIGKILL):
        known: set[int] = set()
        for _ in range(50):
            found = [process for process in descendants(keeper) if process not in known]
            if not found:
                break
            known.update(found)
            for process in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, wanted)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # Its own way to end the program, for where nothing could be listed above.
        os.kill(keeper, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _is_running(keeper):
        for process in descendants(keeper):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(keeper, signal.SIGKILL)


def _is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def process_allowance(processes: int, user: int | None) -> int:
    """The value of RLIMIT_NPROC that leaves room for ``processes`` inside a user namespace.

    Since Linux 5.14 the limit counts the processes of that namespace alone. Before, it counted all of the user's on the machine.
    """
    version = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdigit())
    if version >= (5, 14):
        return processes
    return processes + tasks_of(os.geteuid() if user is None else user)


def tasks_of(user: int) -> int:
    """Processes and threads of ``user`` on this machine; more than any limit where they cannot be listed."""
    if not Path("/proc/self/stat").exists():
        return 1 << 16
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == user:
                    total += _stat(int(entry.name))[_THREADS]
    return total
