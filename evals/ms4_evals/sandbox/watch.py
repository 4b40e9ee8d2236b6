"""Follows one run from outside: reads its output up to a bound, holds it to its limits, ends it, and says how it ended.

Used for every kind of sandbox. It trusts nothing that comes from the program: output is bytes, and whether the run is over is decided by
its keeper's end, never by a pipe that somebody might hold open.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_watch.py``.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ms4_evals.sandbox.base import STDERR_KEPT, Limits, Outcome
from ms4_evals.sandbox.ending import Seen, Stop, decide
from ms4_evals.sandbox.processes import Usage, measure

STARTUP_SECONDS = 20.0
"""How long a sandbox may take to start a program on a machine that has other things to do; usually some 0.02."""

# A process that nothing bounds fills about 2 GB a second, so the memory limit may be passed by some 50 MB for a moment.
_LOOK_SECONDS = 0.025
_END_SECONDS = 5.0
_CHUNK = 1 << 16
_MAX_REPORT = 4096


class Child(Protocol):
    """A started sandbox: the process that we started, our ends of its pipes, and how it is watched and ended."""

    process: subprocess.Popen[bytes]
    stdout: int
    stderr: int
    report: int
    limits_processes: bool

    def keeper(self) -> int | None:
        """Process number of the keeper as seen from here; None while it is not known."""
        ...

    def end(self) -> None:
        """Kills everything; may be called again."""
        ...

    def release(self) -> None:
        """Gives back what outlives the process (descriptors, folders)."""
        ...


@dataclass
class Output:
    """Standard output as it arrives, for whoever waits for it in another thread."""

    data: bytearray = field(default_factory=bytearray)
    total: int = 0
    is_complete: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, data: bytes) -> None:
        """More has arrived."""
        with self.changed:
            self.data += data
            self.changed.notify_all()

    def complete(self) -> None:
        """Nothing more will arrive."""
        with self.changed:
            self.is_complete = True
            self.changed.notify_all()

    def take_line(self, timeout: float) -> bytes | None:
        """The next line, or what is left at the end; None after ``timeout`` seconds or when nothing is left."""
        with self.changed:
            self.changed.wait_for(lambda: b"\n" in self.data or self.is_complete, timeout)
            end = self.data.find(b"\n") + 1
            if not end:
                if not self.is_complete or not self.data:
                    return None
                end = len(self.data)
            line = bytes(self.data[:end])
            del self.data[:end]
            return line


class Watch:
    """One run, followed in the thread that calls ``follow``."""

    def __init__(self, child: Child, limits: Limits) -> None:
        self._child = child
        self._limits = limits
        self.output = Output()
        self._stderr = bytearray()
        self._stderr_total = 0
        self._report = bytearray()
        self._stop: Stop | None = None
        self._created = time.monotonic()
        self._started: float | None = None
        self._ended: float | None = None
        self._usage = Usage(0, 0.0, 0)
        self._peak = 0
        self._kills = kills_for_memory()

    def follow(self) -> Outcome:
        """Returns when the program and everything it started have ended."""
        child = self._child
        try:
            with selectors.DefaultSelector() as selector:
                for descriptor in (child.stdout, child.stderr, child.report):
                    os.set_blocking(descriptor, False)
                    selector.register(descriptor, selectors.EVENT_READ)
                self._follow(selector)
            self._finish()
            return self._outcome()
        finally:
            child.end()
            for descriptor in (child.stdout, child.stderr, child.report):
                os.close(descriptor)
            self._reap()
            child.release()
            self.output.complete()

    def _follow(self, selector: selectors.BaseSelector) -> None:
        """Until the keeper's report ends: it does when the keeper has, since nobody else holds it."""
        next_look = 0.0
        while True:
            for key, _ in selector.select(max(0.0, next_look - time.monotonic())):
                descriptor = key.fd
                if not self._read(descriptor):
                    selector.unregister(descriptor)
                    if descriptor == self._child.report:
                        return
            now = time.monotonic()
            if now >= next_look:
                next_look = now + _LOOK_SECONDS
                self._look(now)
            if self._stop is not None or (self._started is None and now - self._created > STARTUP_SECONDS):
                self._child.end()
                return

    def _read(self, descriptor: int) -> bool:
        """One chunk; False at the end of the pipe."""
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return True
        if descriptor == self._child.report:
            # Zero bytes only show that the keeper can still write.
            self._report += data.replace(b"\0", b"")[: _MAX_REPORT - len(self._report)]
            now = time.monotonic()
            if self._started is None and b"started\n" in self._report:
                self._started = now
            if self._ended is None and b"ended " in self._report:
                self._ended = now
        elif descriptor == self._child.stdout:
            room = max(0, self._limits.output_bytes - self.output.total)
            self.output.total += len(data)
            self.output.add(data[:room])
            if len(data) > room:
                self._stop = self._stop or "output"
        else:
            self._stderr_total += len(data)
            self._stderr += data
            del self._stderr[:-STDERR_KEPT]
            if self._stderr_total > self._limits.output_bytes:
                self._stop = self._stop or "output"
        return bool(data)

    def _look(self, now: float) -> None:
        """Holds the run to its limits."""
        if self._ended is not None:
            if now - self._ended > _END_SECONDS:
                self._child.end()
            return
        keeper = self._child.keeper()
        if self._started is None or keeper is None:
            return
        limits = self._limits
        self._usage = measure(keeper, limits.memory_bytes)
        self._peak = max(self._peak, self._usage.resident_bytes)
        if self._stop is not None:
            return
        if self._usage.resident_bytes > limits.memory_bytes:
            self._stop = "memory"
        elif self._usage.cpu_seconds > limits.cpu_seconds:
            self._stop = "cpu-time"
        elif now - self._started > limits.wall_seconds:
            self._stop = "wall-time"
        elif self._child.limits_processes and self._usage.tasks > limits.processes:
            self._stop = "processes"

    def _finish(self) -> None:
        """Ends the sandbox, and reads what the program had written before."""
        now = time.monotonic()
        self._ended = self._ended or now
        self._reap()
        for descriptor in (self._child.stdout, self._child.stderr, self._child.report):
            # A pipe holds a bounded number of bytes; whoever still writes into it must not keep us.
            for _ in range(64):
                try:
                    before = self.output.total + self._stderr_total + len(self._report)
                    if not self._read(descriptor) or before == self.output.total + self._stderr_total + len(self._report):
                        break
                except OSError:
                    break

    def _reap(self) -> None:
        process = self._child.process
        if process.returncode is not None:
            return
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.end()
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)

    def _outcome(self) -> Outcome:
        wait_status, cpu_seconds, peak, has_flooded, failure = _parsed(bytes(self._report))
        ended = self._ended or time.monotonic()
        wall_seconds = ended - (self._started or self._created)
        seen = Seen(
            stop=self._stop,
            wait_status=wait_status if failure is None else None,
            has_flooded=has_flooded,
            wall_seconds=wall_seconds,
            cpu_seconds=max(cpu_seconds, self._usage.cpu_seconds),
            peak_bytes=max(peak, self._peak),
            stderr=bytes(self._stderr),
            machine_ran_out=kills_for_memory() > self._kills,
        )
        status, exit_code, killer = decide(seen, self._limits)
        stderr = seen.stderr if failure is None else seen.stderr + failure
        if status == "sandbox-error" and seen.machine_ran_out:
            stderr += b"\nthe machine ran out of memory: grade fewer programs at once (sandbox.workers)"
        with self.output.changed:
            stdout = bytes(self.output.data)
        return Outcome(status, exit_code, killer, stdout, stderr, wall_seconds, seen.cpu_seconds, seen.peak_bytes)


def kills_for_memory(table: str = "/proc/vmstat") -> int:
    """Processes that this machine's kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path(table).read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return 0
    return int(found[1]) if found else 0


def _parsed(report: bytes) -> tuple[int | None, float, int, bool, bytes | None]:
    """Wait status, CPU seconds, peak bytes, whether there were too many files, and why the program was not started."""
    wait_status, cpu_seconds, peak, has_flooded, failure = None, 0.0, 0, False, None
    for line in report.split(b"\n"):
        word, _, rest = line.partition(b" ")
        if word == b"ended":
            values = rest.split()
            wait_status, cpu_seconds, peak = int(values[0]), float(values[1]), int(values[2]) * 1024
        elif word == b"files":
            has_flooded = True
        elif word == b"failed":
            failure = rest
    return wait_status, cpu_seconds, peak, has_flooded, failure
