"""What several ranks print, as one stream: rank 0 as it is, the others' lines with their number, and what several print alike only once.

Exercise it: ``pytest tests/ms4_train/cli/test_launch_output.py``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

HOLD_SECONDS = 1.0
"""So long a line of another rank waits for the same one of rank 0."""
MAX_LINES = 4096
"""Different lines that are remembered."""

_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\r")
_PASSED_ON = re.compile(rb"^error: (?:rank \d+ (?:has stopped|could not save|ended with an error): )+")
_TRACEBACK = b"Traceback (most recent call last):"


@dataclass
class Lines:
    """Cuts a stream into lines; a traceback is one of them."""

    _rest: bytes = b""
    _traceback: list[bytes] = field(default_factory=list)

    def cut(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, without their ends and without a terminal's escapes."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines: list[bytes] = []
        for raw in whole:
            line = _ESCAPES.sub(b"", raw)
            if self._traceback or line == _TRACEBACK:
                self._traceback.append(line)
                if line and not line.startswith(b" ") and line != _TRACEBACK:  # the exception itself
                    lines.append(self._end_traceback())
            else:
                lines.append(line)
        return lines

    def end(self) -> list[bytes]:
        """What is left at the end of the stream."""
        rest, self._rest = _ESCAPES.sub(b"", self._rest), b""
        if self._traceback:
            return [self._end_traceback() + (b"\n" + rest if rest else b"")]
        return [rest] if rest else []

    def _end_traceback(self) -> bytes:
        block, self._traceback = b"\n".join(self._traceback), []
        return block


class Merger:
    """Decides what is shown. A line is shown as often as the rank has it that prints it most often.

    A rank's error and what other ranks say of it ("error: rank 1 has stopped: ...") are the same line: it is read once.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[bytes, dict[int, int]] = OrderedDict()
        self._shown: dict[bytes, int] = {}
        self._held: list[tuple[float, int, bytes]] = []

    def own(self, line: bytes) -> None:
        """A line of rank 0, which is on the screen already."""
        line = _PASSED_ON.sub(b"error: ", line)
        count = self._count(0, line)
        self._shown[line] = max(self._shown.get(line, 0), count)

    def hold(self, rank: int, line: bytes, now: float) -> None:
        """A line of another rank."""
        self._held.append((now, rank, line))

    def due(self, now: float) -> list[bytes]:
        """The lines to show now."""
        shown = []
        while self._held and now - self._held[0][0] >= HOLD_SECONDS:
            _, rank, line = self._held.pop(0)
            same = _PASSED_ON.sub(b"error: ", line)
            if self._count(rank, same) > self._shown.get(same, 0):
                self._shown[same] = self._shown.get(same, 0) + 1
                shown.append(b"\n".join(b"[rank %d] %s" % (rank, part) for part in line.split(b"\n")) + b"\n")
        return shown

    def _count(self, rank: int, line: bytes) -> int:
        counts = self._counts.setdefault(line, {})
        self._counts.move_to_end(line)
        counts[rank] = counts.get(rank, 0) + 1
        while len(self._counts) > MAX_LINES:
            forgotten, _ = self._counts.popitem(last=False)
            self._shown.pop(forgotten, None)
        return counts[rank]


class Screen:
    """Reads the ranks' pipes in threads and writes to this process's own standard output and error.

    ``show`` starts reading one pipe; ``close`` ends when all of them are at their end.
    """

    def __init__(self) -> None:
        self._merger = Merger()
        self._lock = threading.Lock()
        self._readers: list[threading.Thread] = []
        self._is_over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()

    def show(self, rank: int, source: int, target: int) -> None:
        """Bring what comes from the descriptor ``source`` to the descriptor ``target`` (1 or 2); closes ``source`` at its end."""
        reader = threading.Thread(target=self._read, args=(rank, source, target), daemon=True)
        self._readers.append(reader)
        reader.start()

    def close(self, seconds: float) -> None:
        """Show the rest. Waits at most so long for a pipe that a grandchild holds open."""
        deadline = time.monotonic() + seconds
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        self._is_over.set()
        self._ticker.join()
        with self._lock:
            self._write_due(float("inf"))

    def _read(self, rank: int, source: int, target: int) -> None:
        lines = Lines()
        try:
            while data := _read_some(source):
                if rank == 0:
                    _write(target, data)
                self._take(rank, lines.cut(data))
            self._take(rank, lines.end())
        finally:
            os.close(source)

    def _take(self, rank: int, lines: list[bytes]) -> None:
        with self._lock:
            for line in lines:
                if rank == 0:
                    self._merger.own(line)
                elif line:
                    self._merger.hold(rank, line, time.monotonic())

    def _tick(self) -> None:
        while not self._is_over.wait(HOLD_SECONDS / 5):
            with self._lock:
                self._write_due(time.monotonic())

    def _write_due(self, now: float) -> None:
        for text in self._merger.due(now):
            _write(2, text)


def _read_some(source: int) -> bytes:
    try:
        return os.read(source, 1 << 16)
    except OSError as error:
        if error.errno == errno.EIO:  # the end of a terminal
            return b""
        raise


def _write(target: int, data: bytes) -> None:
    with contextlib.suppress(OSError):  # a reader that went away, or a full disk: the ranks go on
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
