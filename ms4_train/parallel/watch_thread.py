"""What both kinds of watchers share: a thread with a clock, the places that it tells, and the end of the process when a verdict is out.

The thread of rank 0 is in ``watch_hub``, that of the others in ``watch_member``.
Exercise it: ``pytest tests/ms4_train/parallel/test_watch_thread.py``.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

from ms4_train.errors import RankLostError
from ms4_train.parallel import progress
from ms4_train.parallel.progress import PHASES, Place
from ms4_train.parallel.watch_table import Table, Verdict
from ms4_train.parallel.watch_wire import MAX_LINE_BYTES

TICK_SECONDS = 0.25
BEAT_SECONDS = 0.5
END_SECONDS = 2.5
"""From the verdict to the end of a process whose main thread does not end it itself: it may be stuck in a collective."""
OWN_ERROR_SECONDS = 6.0
"""The same where another rank ended with an error of its own: this one may be about to raise the same."""
SAME_PLACE_SECONDS = 0.05
"""At most one message in this time while a rank stays in its phase."""
MAX_MESSAGE_CHARACTERS = 300


class Clock:
    """Seconds in which this process ran. A process that was stopped itself cannot accuse the others of silence.

    Args:
        most: what a longer pause between two calls counts.
    """

    def __init__(self, most: float) -> None:
        self.now = 0.0
        self._most = most
        self._last = time.monotonic()

    def advance(self) -> float:
        """The time of now."""
        now = time.monotonic()
        self.now += min(now - self._last, self._most)
        self._last = now
        return self.now


class Watcher:
    """One rank's end of the watch. Made and left in the main thread; ``_tick`` and the callbacks of sockets run in its own.

    Args:
        rank: of this process.
        names: of all ranks, for messages.
        timeout: seconds.
    """

    def __init__(self, rank: int, names: list[str], timeout: float) -> None:
        self.rank = rank
        self.table = Table(names, timeout, 0.0)
        self.timeout = timeout
        self.concluded = threading.Event()
        self.verdict: Verdict | None = None
        self.clock = Clock(max(1.2 * TICK_SECONDS, min(2.0, timeout / 4)))
        self.selector = selectors.DefaultSelector()
        self.is_over = threading.Event()
        self._concluded_at = 0.0
        self._last_beat = -BEAT_SECONDS
        self._place = progress.here()
        self._first = self._place.count
        self._told = (self._place, 0.0)
        self._main = threading.get_ident()
        self._wake_reader, self._wake_writer = socket.socketpair()
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self.selector.register(self._wake_reader, selectors.EVENT_READ, self._drain)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def entered(self, place: Place) -> None:
        """The listener of ``progress``: tells the others at once, so that they know it even when this process ends right after.

        Raises:
            RankLostError: a verdict is out, and this is the main thread.
        """
        if place.step != self._place.step:
            self._first = place.count
        self._place = place
        if self.verdict is not None and threading.get_ident() == self._main:
            raise self.verdict.error()
        last, then = self._told
        now = time.monotonic()
        if (last.phase, last.step) != (place.phase, place.step) or now - then > SAME_PLACE_SECONDS:
            self._told = (place, now)
            self.tell({"at": self._at()})

    def tell(self, message: dict[str, Any], *, must_arrive: bool = False) -> None:
        """Send to whoever listens to this rank."""
        raise NotImplementedError

    def leave(self, kind: str, message: str, exit_code: int = RankLostError.exit_code) -> None:
        """Say goodbye: ``done``, ``agreed`` (an error that every rank raises) or ``error``, with the code that the others end with.

        Where a verdict is out beside an error, the thread goes on, to see that the process ends.
        """
        raise NotImplementedError

    def conclude(self, verdict: Verdict) -> None:
        """Set the verdict; the first one counts."""
        if self.verdict is None:
            self._concluded_at = self.clock.now
            self.verdict = verdict
            self.concluded.set()

    def take(self, rank: int, message: dict[str, Any]) -> None:
        """Note what a rank says of itself."""
        self.table.heard(rank, self.clock.now)
        found = _place_of(message.get("at"))
        if found is not None:
            self.table.moved(rank, *found, self.clock.now)
        line = message.get("line")
        if isinstance(line, str):
            self.table.stands(rank, line, message.get("waits") is True)

    def stop(self) -> None:
        """End the thread."""
        self.is_over.set()
        self.wake()
        self._thread.join(2 * END_SECONDS)
        self.close_sockets()

    def wake(self) -> None:
        """Let the thread look at once."""
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"x")

    def close_sockets(self) -> None:
        """Close everything; also in a forked child, which would keep the connections of its parent open."""
        with contextlib.suppress(OSError):
            self.selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _run(self) -> None:
        while not self.is_over.is_set():
            for key, _ in self.selector.select(TICK_SECONDS):
                key.data()
            now = self.clock.advance()
            if self.verdict is not None:
                grace = OWN_ERROR_SECONDS if self.verdict.is_own_error else END_SECONDS
                if now - self._concluded_at >= grace:
                    _end_process(self.verdict.error())
            elif now - self._last_beat >= BEAT_SECONDS:
                self._last_beat = now
                self.table.heard(self.rank, now)
                self.table.moved(self.rank, self._place, self._first, now)
                line, waits = main_thread_line(self._main)
                self.table.stands(self.rank, line, waits)
                self.tell({"at": self._at(), "line": line, "waits": waits})
            self._tick(now)

    def _at(self) -> list[str | int]:
        place = self._place
        return [place.phase, place.step, place.count, self._first]

    def _tick(self, now: float) -> None:
        """What is done several times a second."""
        raise NotImplementedError

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_reader.recv(4096)


def main_thread_line(thread: int) -> tuple[str, bool]:
    """(``loop.py:120 train``, whether a call that waits for other ranks is under way) of a thread of this process."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "", False
    line = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"  # noqa: PTH119 - text, no file is meant
    return line[:120], _waits_for_ranks(frame)


def shortened(text: str) -> str:
    """A message on one line, not too long for one of the watch."""
    line = " ".join(text.split())
    short = line if len(line) <= MAX_MESSAGE_CHARACTERS else line[:MAX_MESSAGE_CHARACTERS] + "..."
    assert len(short) * 6 < MAX_LINE_BYTES  # as JSON may write each as six
    return short


def _waits_for_ranks(frame: FrameType | None) -> bool:
    for _ in range(10):
        if frame is None:
            return False
        name = frame.f_code.co_filename
        if "torch/distributed/" in name or "deepspeed/comm/" in name:
            return True
        frame = frame.f_back
    return False


def _place_of(value: Any) -> tuple[Place, int] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    phase, *numbers = value
    if phase not in PHASES or any(type(number) is not int for number in numbers):
        return None
    step, count, first = numbers
    return Place(phase, step, count), first


def _end_process(error: RankLostError) -> None:
    # The main thread may hold the locks of sys.stdout and sys.stderr, so nothing here may wait for them.
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(0.5)
    with contextlib.suppress(OSError):
        os.write(2, f"error: {error}\n".encode(errors="replace"))
    os._exit(error.exit_code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
