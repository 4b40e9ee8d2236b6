"""How far a conversion is: a bar on a terminal, or a callable.

Exercise it: ``pytest tests/ms4_train/weights/convert/test_progress.py``.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is being done (``checking`` or ``converting``), bytes done and bytes in all; one call at a time, from any thread."""
ProgressChoice = ProgressCallback | Literal["auto"] | None
"""``auto`` draws a bar on standard error where that is a terminal; None is silent."""

_SECONDS_BETWEEN = 0.1


class Meter:
    """Counts bytes and passes the sum on, at most every tenth of a second and at the end."""

    def __init__(self, callback: ProgressCallback | None, phase: str, total: int, done: int = 0) -> None:
        self._callback = callback
        self._phase = phase
        self._total = total
        self._done = done
        self._lock = threading.Lock()
        self._last = 0.0
        self.add(0)

    def add(self, count: int) -> None:
        """Count more bytes."""
        if self._callback is None:
            return
        with self._lock:
            self._done += count
            now = time.monotonic()
            if self._done >= self._total or now - self._last >= _SECONDS_BETWEEN:
                self._last = now
                self._callback(self._phase, self._done, self._total)


@contextlib.contextmanager
def reporting(choice: ProgressChoice) -> Iterator[ProgressCallback | None]:
    """The callback for a choice; a bar is taken away at the end."""
    if choice != "auto":
        yield choice
        return
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {}

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                # What an earlier run wrote is no speed of this one.
                tasks[phase] = bar.add_task(phase, total=total, completed=done)
            bar.update(tasks[phase], completed=done, total=total)

        yield show
