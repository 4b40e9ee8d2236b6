"""How a run ended: from what was seen outside the program to one status.

Two things are known only from the program itself, and neither can turn a failure into a success. An allocation that is refused at once
leaves no trace but the exception (``MemoryError`` as the last line of standard error, exit code 1), so a program may claim that it ran out
of memory when it merely failed. And what it prints is its own.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_ending.py``.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from typing import Literal

from ms4_evals.sandbox.base import Limits, Status

Stop = Literal["wall-time", "cpu-time", "memory", "output", "processes"]
"""Why the watcher ended a run before the program did."""

# With this share of the limit in use, a crash of a program whose allocations fail is put down to memory.
_NEARLY_ALL = 0.9
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL}
_MEMORY_ERROR = re.compile(rb"(?:[\w.]+\.)?_?(?:Array)?MemoryError\b")


@dataclass(frozen=True)
class Seen:
    """What the watcher knows at the end.

    Attributes:
        stop: why it ended the run; None when the program ended by itself.
        wait_status: of the program, as wait(2) gives it; None when the keeper reported none.
        has_flooded: whether the keeper found too many files.
        machine_ran_out: whether the kernel killed some process for want of memory meanwhile.
    """

    stop: Stop | None
    wait_status: int | None
    has_flooded: bool
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    stderr: bytes
    machine_ran_out: bool = False


def decide(seen: Seen, limits: Limits) -> tuple[Status, int | None, int | None]:
    """Status, exit code and signal. The first limit passed is named; when several were, in the order memory, CPU, wall."""
    if seen.stop == "processes":
        return "signalled", None, int(signal.SIGKILL)
    if seen.stop is not None:
        return seen.stop, None, None
    if seen.has_flooded:
        # Each file, even an empty one, takes memory of the kernel's that no process is charged for.
        return "memory", None, None
    if seen.wait_status is None:
        return "sandbox-error", None, None
    code = os.waitstatus_to_exitcode(seen.wait_status)
    killer = -code if code < 0 else None
    if seen.peak_bytes > limits.memory_bytes:
        return "memory", None, None
    if killer == signal.SIGXCPU or seen.cpu_seconds > limits.cpu_seconds:
        return "cpu-time", None, None
    if seen.wall_seconds > limits.wall_seconds:
        return "wall-time", None, None
    if killer is not None:
        if killer in _CRASHES and seen.peak_bytes > _NEARLY_ALL * limits.memory_bytes:
            return "memory", None, None
        if killer == signal.SIGKILL and seen.machine_ran_out:
            # Within its limit, and killed for what others took: whatever that says, it says nothing about the program.
            return "sandbox-error", None, None
        return "signalled", None, killer
    if code == 1 and _MEMORY_ERROR.match(seen.stderr.rstrip().rpartition(b"\n")[2]):
        return "memory", None, None
    return "exited", code, None
