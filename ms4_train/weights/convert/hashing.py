"""SHA-256 of files while they are being written: each is hashed up to where it is whole from its start, from the page cache.

Ranges are reported in any order; a thread follows the point up to which all bytes of a file were written.
Exercise it: ``pytest tests/ms4_train/weights/convert/test_hashing.py``.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

READ_BYTES = 1 << 20
"""Bytes per read: few enough to stay in a core's cache between reading and hashing."""


class _Following:
    """One file: its size, what is written of it, what is hashed."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path = path
        self.num_bytes = num_bytes
        self.whole = 0
        self.hashed = 0
        self.ranges: dict[int, int] = {}
        self.digest = hashlib.sha256()
        self.is_busy = False

    @property
    def is_ready(self) -> bool:
        waiting = self.whole - self.hashed
        return not self.is_busy and (waiting >= READ_BYTES or (waiting > 0 and self.whole == self.num_bytes))


class FollowingHashes:
    """Hashes files on threads of its own while others write them.

    Args:
        files: path and final size of each.
        threads: files hashed at the same time.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], threads: int) -> None:
        self._files = [_Following(path, size) for path, size in files]
        self._changed = threading.Condition()
        self._stopped = False
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, name=f"hash-{number}", daemon=True) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def wrote(self, file: int, start: int, stop: int) -> None:
        """Say that bytes [start, stop) of file number ``file`` are written; every byte is reported once."""
        if start == stop:
            return
        following = self._files[file]
        with self._changed:
            following.ranges[start] = stop
            while following.whole in following.ranges:
                following.whole = following.ranges.pop(following.whole)
            if following.is_ready:
                self._changed.notify()

    def results(self) -> dict[str, str]:
        """Wait until everything is hashed; file name -> 64 hexadecimal digits.

        Raises:
            OSError: a file could not be read.
        """
        with self._changed:
            # With a time limit, because a wait without one cannot be interrupted by Ctrl-C everywhere.
            while self._error is None and any(following.hashed < following.num_bytes for following in self._files):
                self._changed.wait(0.5)
        self.stop()
        if self._error is not None:
            raise self._error
        return {following.path.name: following.digest.hexdigest() for following in self._files}

    def stop(self) -> None:
        """End the threads; what is not hashed stays so."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        buffer = memoryview(bytearray(READ_BYTES))
        try:
            while (following := self._next()) is not None:
                self._follow(following, buffer)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> _Following | None:
        with self._changed:
            while not self._stopped:
                following = next((following for following in self._files if following.is_ready), None)
                if following is not None:
                    following.is_busy = True
                    return following
                self._changed.wait()
            return None

    def _follow(self, following: _Following, buffer: memoryview) -> None:
        descriptor = os.open(following.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while not self._stopped:
                stop = following.whole
                while following.hashed < stop and not self._stopped:
                    part = buffer[: min(len(buffer), stop - following.hashed)]
                    count = os.preadv(descriptor, [part], following.hashed)
                    if not count:
                        raise OSError(None, f"{following.path} became shorter")
                    following.digest.update(part[:count])
                    following.hashed += count
                with self._changed:
                    if following.whole == stop:
                        following.is_busy = False
                        self._changed.notify_all()
                        return
        finally:
            os.close(descriptor)
