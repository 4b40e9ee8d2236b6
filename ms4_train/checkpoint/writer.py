"""The thread that writes one rank's part of a checkpoint while training goes on, or while the main thread waits and is seen to get on.

Exercise it: ``pytest tests/ms4_train/checkpoint/test_writer.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ms4_train.checkpoint.manifest import FileSum
from ms4_train.checkpoint.part import SHARD_BYTES, HeldPart, write_part
from ms4_train.errors import CheckpointError, MS4Error
from ms4_train.parallel import progress

_LOOKS_PER_SECOND = 10
_SECONDS_TO_STOP = 1.0


class _Cancelled(Exception):
    """Not an error: it was asked for."""


class PartWriter:
    """Takes a part at once, in the thread that makes this object, and writes it in another.

    Whatever goes wrong, here or in the thread, is kept in ``error``: a rank that raised at once, alone, would leave the others waiting.

    Args:
        folder: of the checkpoint; must exist.
        take: gives the part, a copy or live state; called before this returns.
        shard_bytes: as in ``write_part``.
        then: called in the thread with the sums of the files, when all are on the disk.
    """

    def __init__(
        self,
        folder: Path,
        take: Callable[[], HeldPart],
        *,
        shard_bytes: int = SHARD_BYTES,
        then: Callable[[Mapping[str, FileSum]], None] | None = None,
    ) -> None:
        self._folder, self._shard_bytes, self._then = folder, shard_bytes, then
        self.sums: dict[str, FileSum] = {}
        self._error: BaseException | None = None
        self._is_done = False
        self._bytes = 0
        self._is_cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            part = take()
        except Exception as error:
            if isinstance(error, MS4Error) and error.code == "interrupted":  # a second signal: this process ends now
                raise
            self._error = error
            return
        # A daemon, so that a disk that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, args=(part,), name="run state writer", daemon=True)
        del part
        self._thread.start()

    @property
    def is_writing(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def error(self) -> MS4Error | None:
        """What went wrong, once the thread has ended; None when all is written."""
        if self.is_writing or (self._is_done and self._error is None):
            return None
        if isinstance(self._error, MS4Error):
            return self._error
        cause = "its thread ended without a word" if self._error is None else f"{type(self._error).__name__}: {self._error}"
        error = CheckpointError(f"run state cannot be written ({cause}).", file=self._folder)
        error.__cause__ = self._error
        return error

    def wait(self) -> None:
        """Until the thread has ended. As long as bytes are written, the process counts as getting on."""
        seen = self._bytes
        while self.is_writing:
            assert self._thread is not None
            self._thread.join(1 / _LOOKS_PER_SECOND)
            if self._bytes != seen:
                seen = self._bytes
                progress.at("save")

    def cancel(self) -> None:
        """Ask the thread to stop, and wait for it a little: a flush that takes long cannot be ended from here, and writes nothing more."""
        self._is_cancelled.set()
        if self._thread is not None:
            self._thread.join(_SECONDS_TO_STOP)

    def _run(self, part: HeldPart) -> None:
        try:
            self.sums = write_part(self._folder, part, shard_bytes=self._shard_bytes, proceed=self._proceed)
            self._proceed(0)
            if self._then is not None:
                self._then(self.sums)
            self._is_done = True
        except BaseException as error:
            self._error = error

    def _proceed(self, count: int) -> None:
        if self._is_cancelled.is_set():
            raise _Cancelled
        self._bytes += count
