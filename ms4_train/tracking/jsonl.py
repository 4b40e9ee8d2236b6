"""metrics.jsonl: one JSON object per line, always written, and the same file across resumes.

A line is ``{"step": 12, "loss": 1.5, ...}``; the last line of a finished run has ``"summary": true``. On resume, lines after the
resumed step (and a line torn by a kill) are cut off, so each step stands there once.
Exercise it: ``pytest tests/ms4_train/tracking/test_jsonl.py``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from ms4_train.errors import MS4Error, StorageError
from ms4_train.storage import storage_errors
from ms4_train.tracking.base import Metrics
from ms4_train.untrusted import parse_json

_LOG = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"
PREVIOUS_NAME = "metrics.previous.jsonl"
_POSITION = "metrics_bytes"


class JsonlTracker:
    """Appends to ``<output_dir>/metrics.jsonl``. Satisfies ``Tracker``.

    Args:
        output_dir: made when missing.
        step: optimizer steps that the resumed run has done; 0 for a new run, which moves an older file to ``metrics.previous.jsonl``.
        resumed: what ``state`` gave when the checkpoint was written.
        go_on: whether lines that cannot be written wait in memory until they can, or until ``close``.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, output_dir: Path, *, step: int = 0, resumed: dict[str, Any] | None = None, go_on: bool = False) -> None:
        self.path = output_dir / METRICS_NAME
        self._step, self._go_on = step, go_on
        self._waiting: list[bytes] = []
        with storage_errors(self.path):
            output_dir.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size:
                if step == 0:
                    self.path.replace(output_dir / PREVIOUS_NAME)
                else:
                    os.truncate(self.path, _kept_bytes(self.path, step, (resumed or {}).get(_POSITION)))
            self._handle = self.path.open("ab", buffering=0)

    def log(self, step: int, metrics: Metrics) -> None:
        """Append one line; it survives the death of this process at once, and of the machine after ``state``.

        Raises:
            StorageError: it cannot be written; not with ``go_on``.
        """
        self._step = step
        self._write({"step": step, **metrics})

    def summary(self, metrics: Metrics) -> None:
        """Append the line of the finished run."""
        self._write({"step": self._step, "summary": True, **metrics})

    def state(self) -> dict[str, Any]:
        """Flush to the disk; the length of the file."""
        self._write_waiting()
        with storage_errors(self.path):
            os.fsync(self._handle.fileno())
        return {_POSITION: self._handle.seek(0, os.SEEK_END)}

    def close(self) -> None:
        """Flush to the disk and close.

        Raises:
            StorageError: not everything can be written.
        """
        if self._handle.closed:
            return
        self._go_on = False
        try:
            self._write_waiting()
            with storage_errors(self.path):
                os.fsync(self._handle.fileno())
        finally:
            self._handle.close()

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN or infinity; a metric that is neither number nor text is not worth an unreadable file.
        clean = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()}
        self._waiting.append(json.dumps(clean).encode() + b"\n")
        self._write_waiting()

    def _write_waiting(self) -> None:
        """Write what waits, whole lines only."""
        was_stuck = len(self._waiting) > 1
        try:
            while self._waiting:
                with storage_errors(self.path, sum(map(len, self._waiting))):
                    self._append(self._waiting[0])
                del self._waiting[0]
        except StorageError as error:
            if not self._go_on:
                raise
            if not was_stuck:
                _LOG.warning("metrics wait in memory: %s", error)

    def _append(self, line: bytes) -> None:
        end = self._handle.seek(0, os.SEEK_END)
        try:
            rest = line
            while rest:  # a disk that fills up takes a part of it first
                rest = rest[self._handle.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._handle.truncate(end)
            raise


def _kept_bytes(path: Path, step: int, position: int | None) -> int:
    """How much of the file belongs to steps up to ``step``: the recorded length where it fits the file, else by reading the lines."""
    with path.open("rb") as handle:
        if position is not None and 0 < position <= path.stat().st_size:
            handle.seek(position - 1)
            if handle.read(1) == b"\n":
                return position
        handle.seek(0)
        kept = 0
        for line in handle:
            try:
                content = parse_json(line)
            except MS4Error:
                break
            if not line.endswith(b"\n") or not isinstance(content, dict) or content.get("step", 0) > step:
                break
            kept += len(line)
    return kept
