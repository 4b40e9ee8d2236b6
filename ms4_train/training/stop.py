"""Stopping a run from outside: SIGTERM (a scheduler) and SIGINT (Ctrl-C) finish the step and save before the process ends.

A second signal ends the process at once; run state on the disk stays whole, because it is only ever replaced by a rename.
Exercise it: ``pytest tests/ms4_train/training/test_stop.py``.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType

from ms4_train.errors import TrainingError
from ms4_train.parallel import Mesh

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingInterruptedError(TrainingError):
    """The run ended early because it was asked to. ``exit_code`` is 128 plus the signal's number, as shells have it."""

    code = "interrupted"

    def __init__(self, signal_number: int, *, step: int | None = None, saved: Path | None = None) -> None:
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        name = signal.Signals(signal_number).name
        when = "" if step is None else f" after step {step}"
        kept = f"run state is in {saved}." if saved is not None else "no run state was saved."
        super().__init__(f"stopped by {name}{when}; {kept}", fix="run the same command again to go on." if saved else None)


class StopSignals:
    """Remembers a stop signal while the block runs, and puts the old handlers back after it.

    Outside the main thread Python allows no handlers; there the block runs without them.
    """

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def agreed(self, mesh: Mesh) -> int:
        """The signal that any rank received, the same on every rank; 0 for none. Collective."""
        if mesh.world_size == 1:
            return self._received
        numbers = [number for number in mesh.all_gather_json(self._received) if number]
        return numbers[0] if numbers else 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise TrainingInterruptedError(number)
        self._received = number
