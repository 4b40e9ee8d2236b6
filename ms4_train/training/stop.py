"""Stopping a run from outside: by SIGTERM (a scheduler) or SIGINT (Ctrl-C).

The rules:

- During the steps the first signal, of either kind, to any rank, finishes the step, saves run state, and ends with exit code 128 plus the
  signal's number: 143 for SIGTERM, 130 for SIGINT. The same command goes on from there, unless training.resume_from_checkpoint is not
  ``auto``: the message then says how.
- A further SIGINT ends the process at once; a further SIGTERM changes nothing: schedulers and launchers both send it, to the same ranks.
- Before the first step and after the last one there is nothing to save: the first signal ends the process at once.

"At once" is at most two seconds, also where the main thread does not hear of signals, in a collective or in a long call of C++: a thread
then ends the process. Run state on the disk stays whole, because it is only ever replaced by a rename.
Exercise it: ``pytest tests/ms4_train/training/test_stop.py tests/reliability/test_stop_signals.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType

from ms4_train.errors import TrainingError
from ms4_train.parallel import Mesh

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
AT_ONCE_SECONDS = 1.5
"""For the main thread to end, when it should at once."""


class TrainingInterruptedError(TrainingError):
    """The run ended early because it was asked to. ``exit_code`` is 128 plus the signal's number, as shells have it.

    Args:
        signal_number: that asked for it.
        step: steps done, where the run ended at the end of a step, on all ranks; None for a process that ends at once.
        saved: the checkpoint that was written for it.
        resume: the run's training.resume_from_checkpoint, for the fix.
    """

    code = "interrupted"

    def __init__(self, signal_number: int, *, step: int | None = None, saved: Path | None = None, resume: str = "auto") -> None:
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        self.on_all_ranks = step is not None
        name = signal.Signals(signal_number).name
        if step is None:
            super().__init__(f"stopped by {name}, at once; what was saved before stays.")
            return
        kept = f"run state is in {saved}." if saved is not None else "no run state was saved."
        super().__init__(f"stopped by {name} after step {step}; {kept}", fix=_going_on(resume) if saved is not None else None)


def _going_on(resume: str) -> str:
    if resume == "auto":
        return "run the same command again to go on."
    begin = "at step 0" if resume == "never" else f"from {resume}"
    return f"start again with training.resume_from_checkpoint=auto to go on; the same command would begin {begin} again."


class StopSignals:
    """Hears stop signals while the block runs, and puts the old handlers back after it.

    Outside the main thread Python allows no handlers; there the block runs without them.
    """

    def __init__(self) -> None:
        self._received = 0
        self._is_finishing = False
        self._previous: dict[int, signal._HANDLER] = {}
        self._guard: _Guard | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._guard = _Guard(self._is_harmless)
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    @property
    def received(self) -> int:
        """The first signal that this process received; 0 for none."""
        return self._received

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """While the block runs, the first signal is remembered, for ``agreed`` to tell, and ends nothing."""
        self._is_finishing = True
        try:
            yield
        finally:
            self._is_finishing = False

    def agreed(self, mesh: Mesh) -> int:
        """The signal that any rank received, the same on every rank; 0 for none. Collective."""
        if mesh.world_size == 1:
            return self._received
        numbers = [number for number in mesh.all_gather_json(self._received) if number]
        return numbers[0] if numbers else 0

    def _is_harmless(self, number: int, earlier: int) -> bool:
        if earlier == 0:
            return self._is_finishing
        return number == signal.SIGTERM

    def _receive(self, number: int, frame: FrameType | None) -> None:
        earlier, self._received = self._received, self._received or number
        if not self._is_harmless(number, earlier):
            raise TrainingInterruptedError(number)


class _Guard:
    """A thread that hears every signal as it comes, whatever the main thread does, and ends the process where that one does not.

    Args:
        is_harmless: told a signal and the one before it (0: none), says whether the process may go on.
    """

    def __init__(self, is_harmless: Callable[[int, int], bool]) -> None:
        self._is_harmless = is_harmless
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._is_over = threading.Event()
        self._earlier = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="stop signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear no more."""
        self._is_over.set()
        signal.set_wakeup_fd(self._earlier)
        self._writer.close()
        self._thread.join(AT_ONCE_SECONDS)
        self._reader.close()

    def _listen(self) -> None:
        earlier = 0
        while numbers := self._reader.recv(16):  # the interpreter writes the number of each signal as one byte
            for number in numbers:
                if number not in _SIGNALS:
                    continue
                if not self._is_harmless(number, earlier):
                    if not self._is_over.wait(AT_ONCE_SECONDS):
                        _end_process(TrainingInterruptedError(number))
                    return
                earlier = earlier or number


def _end_process(error: TrainingInterruptedError) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"error: {error}\n".encode())
    os._exit(error.exit_code)
