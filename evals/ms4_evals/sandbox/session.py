"""A program that is talked to line by line, under the same limits as any other run.

One thread of ours starts the program and follows it to its end, so that the caller may wait for single lines.
Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_session.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable

from ms4_evals.sandbox.base import Limits, Outcome
from ms4_evals.sandbox.watch import Child, Watch

_FULL_SECONDS = 0.002
"""Pause before writing again to a full pipe."""


class RunningSession:
    """Implements ``base.Session``.

    Args:
        launch: starts the program, given the descriptor of its standard input.
        limits: of the whole conversation.
    """

    def __init__(self, launch: Callable[[int], Child], limits: Limits) -> None:
        read_end, self._stdin = os.pipe()
        os.set_blocking(self._stdin, False)
        self._is_stdin_open = True
        self._limits = limits
        self._child: Child | None = None
        self._watch: Watch | None = None
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(launch, read_end), name="sandbox-session", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    @property
    def is_open(self) -> bool:
        """Whether the program may still be running."""
        return self._thread.is_alive()

    def _follow(self, launch: Callable[[int], Child], stdin: int) -> None:
        begun = time.monotonic()
        try:
            self._child = launch(stdin)
            self._watch = Watch(self._child, self._limits)
            self._is_ready.set()
            self._outcome = self._watch.follow()
        except OSError as error:
            message = f"sandbox: {error}".encode()
            self._outcome = Outcome("sandbox-error", None, None, b"", message, time.monotonic() - begun, 0.0, 0)
        except BaseException as error:
            self._error = error
        finally:
            self._is_ready.set()

    def send(self, data: bytes) -> None:
        """Waits while the program's pipe is full; stops when it ends."""
        view = memoryview(data)
        while view and self.is_open:
            with self._lock:
                if not self._is_stdin_open:
                    return
                try:
                    view = view[os.write(self._stdin, view) :]
                    continue
                except BlockingIOError:
                    pass
                except OSError:
                    # The program has closed its input or has ended.
                    return
            time.sleep(_FULL_SECONDS)

    def read_line(self, timeout: float) -> bytes | None:
        """See ``base.Session``."""
        return self._watch.output.take_line(timeout) if self._watch else None

    def _close_stdin(self) -> None:
        with self._lock:
            if self._is_stdin_open:
                self._is_stdin_open = False
                os.close(self._stdin)

    def close(self) -> Outcome:
        """See ``base.Session``."""
        self._close_stdin()
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._outcome is not None, "a followed run has an outcome"
        if self._watch is None:
            return self._outcome
        # A program may end before its lines are taken; what was taken since is not in the outcome a second time.
        return dataclasses.replace(self._outcome, stdout=bytes(self._watch.output.data))

    def abort(self) -> None:
        """Ends the program now."""
        if self._child is not None and self.is_open:
            with contextlib.suppress(OSError):
                self._child.end()
        self._close_stdin()
        self._thread.join()
