"""Real runs whose saves in the background fail, die, or are in flight when something else happens.

Run it as ``python -m support.run_state_async FOLDER PLAN...``; ``support.run_state_kills`` says what comes of it. The main thread is held
where a test must know what the writer has done by then, so that nothing depends on the speed of the machine.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from support.run_state_calls import Call, Watcher
from support.run_state_kills import SAVED, STEPS, Life, after_step, run_plans
from support.run_state_points import kind_of, step_of

from ms4_train.checkpoint.writer import PartWriter

WAIT_SECONDS = 30.0


class Broken(Watcher):
    """The first write of the save of step 8 fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def before(self, call: Call) -> None:
        if call.kind == "write" and kind_of(call.path) == "tensors" and step_of(call.path) == SAVED:
            raise self.error


class Held(Watcher):
    """The save of a step does not come to its manifest before it may."""

    def __init__(self, step: int) -> None:
        self.step, self.may = step, threading.Event()

    def before(self, call: Call) -> None:
        if call.kind == "create" and kind_of(call.path) == "manifest" and step_of(call.path) == self.step:
            assert self.may.wait(WAIT_SECONDS)


def until_no_writer() -> None:
    """Wait until no thread writes run state, so that what it came to is known."""
    deadline = time.monotonic() + WAIT_SECONDS
    while any(thread.name == "run state writer" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)


def failing(error: Exception) -> Callable[[], Watcher]:
    """The writer of step 8 raises; step 9 is not over before it has."""

    def begin() -> Watcher:
        after_step(SAVED + 1, until_no_writer)
        return Broken(error)

    return begin


def dying() -> None:
    """The thread that writes step 8 ends without a word."""
    write = PartWriter._run

    def silent(self: PartWriter, *arguments: object) -> None:
        if step_of(self._folder) != SAVED:
            write(self, *arguments)  # type: ignore[arg-type]

    PartWriter._run = silent  # type: ignore[method-assign]
    after_step(SAVED + 1, until_no_writer)


def stopped(*, later: float) -> Callable[[], Watcher]:
    """SIGTERM in step 9, with the save of step 8 in flight; it may end ``later``, in seconds."""

    def begin() -> Watcher:
        held = Held(SAVED)

        def stop() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(later, held.may.set).start()

        after_step(SAVED + 1, stop)
        return held

    return begin


def slow_at_the_end() -> Watcher:
    """The last save comes to its manifest half a second after the last step."""
    held = Held(STEPS)
    after_step(STEPS, lambda: threading.Timer(0.5, held.may.set).start())
    return held


def plans() -> dict[str, list[Life]]:
    """Name -> the lives before the run may live on."""
    return {
        "disk fails": [Life(begin=failing(OSError(errno.EIO, os.strerror(errno.EIO))))],
        "writer fails": [Life(begin=failing(ValueError("a defect")))],
        "thread dies": [Life(begin=dying)],
        "stopped with a save in flight": [Life(begin=stopped(later=0.3))],
        "ends with a save in flight": [Life(begin=slow_at_the_end)],
    }


if __name__ == "__main__":
    print(json.dumps(run_plans(Path(sys.argv[1]), sys.argv[2:], plans())))
