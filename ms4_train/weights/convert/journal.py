"""Which items of a conversion are on the disk, so that a killed one goes on where it was.

The first line says what the conversion is: its arguments, its plan, and its source by size, time and header of every file. Each further
line names items that are done. An item is named only after the files that it wrote were flushed (``fdatasync``), in batches of 64 items
or 256 MiB, and the line itself is flushed before the next batch; so after a power cut, too, every named item is whole, and what was
written later is written again. A last line that was cut off is dropped.
Exercise it: ``pytest tests/ms4_train/weights/convert/test_journal.py``.

Not covered: damage to the partial files between two runs by someone else.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ms4_train.errors import MS4Error
from ms4_train.storage import fsync_folder
from ms4_train.untrusted import parse_json, read_bytes

JOURNAL_FILE = "journal.jsonl"
BATCH_ITEMS = 64
BATCH_BYTES = 256 << 20
_MAX_JOURNAL_BYTES = 256 << 20


@dataclass
class JournalState:
    """What a journal says.

    Attributes:
        header: its first line.
        done: numbers of the items that are on the disk.
        saturated: our name of a piece -> values that were clipped when it was quantised.
        valid_bytes: length of the lines that are whole.
    """

    header: dict[str, Any]
    done: set[int] = field(default_factory=set)
    saturated: dict[str, int] = field(default_factory=dict)
    valid_bytes: int = 0


def start_journal(folder: Path, header: Mapping[str, Any]) -> None:
    """Write a journal in which nothing is done, flushed to the disk.

    Raises:
        OSError: it cannot be written.
    """
    _append(folder / JOURNAL_FILE, header, os.O_CREAT | os.O_EXCL)
    fsync_folder(folder)


def read_journal(folder: Path) -> JournalState | None:
    """Read a journal; None where there is none that can be trusted."""
    try:
        data = read_bytes(folder / JOURNAL_FILE, max_bytes=_MAX_JOURNAL_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        lines = [parse_json(line) for line in whole.splitlines()]
    except MS4Error:
        return None
    if not lines or not isinstance(lines[0], dict):
        return None
    state = JournalState(lines[0], valid_bytes=len(whole))
    for line in lines[1:]:
        match line:
            case {"items": list(items), "saturated": dict(saturated)}:
                state.done.update(items)
                state.saturated.update(saturated)
            case _:
                return None
    return state


class JournalWriter:
    """Takes finished items and writes them down, batch by batch, on a thread of its own, so that nobody waits for the disk.

    Args:
        folder: where the journal is.
        files: the weight files, by number.
        state: what the journal says so far; a cut-off last line is removed.
    """

    def __init__(self, folder: Path, files: list[Path], state: JournalState) -> None:
        self._path = folder / JOURNAL_FILE
        self._files = files
        os.truncate(self._path, state.valid_bytes)
        self._queue: queue.SimpleQueue[tuple[int, set[int], int, dict[str, int]] | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def done(self, item: int, files: set[int], num_bytes: int, saturated: Mapping[str, int]) -> None:
        """Say that an item was written: to which files, how many bytes, and what was clipped."""
        self._queue.put((item, files, num_bytes, dict(saturated)))

    def close(self) -> None:
        """Flush and write down what was reported.

        Raises:
            OSError: the disk failed; batches up to there are written down.
        """
        self._queue.put(None)
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        items: list[int] = []
        files: set[int] = set()
        saturated: dict[str, int] = {}
        size = 0
        try:
            while True:
                report = self._queue.get()
                if report is not None:
                    item, touched, num_bytes, clipped = report
                    items.append(item)
                    files |= touched
                    saturated |= clipped
                    size += num_bytes
                    if len(items) < BATCH_ITEMS and size < BATCH_BYTES:
                        continue
                if items:
                    for file in sorted(files):
                        flush(self._files[file])
                    _append(self._path, {"items": items, "saturated": saturated})
                    items, files, saturated, size = [], set(), {}, 0
                if report is None:
                    return
        except BaseException as error:
            self.error = error


def flush(path: Path) -> None:
    """Flush a file's data to the disk.

    Raises:
        OSError: the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _append(path: Path, content: Mapping[str, Any], flags: int = 0) -> None:
    line = json.dumps(content, separators=(",", ":"), sort_keys=True).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o666)
    try:
        view = memoryview(line)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
