"""metrics.jsonl: one JSON object per line, always written, and the same file across resumes.

A line is ``{"step": 12, "loss": 1.5, ...}``; the last line of a finished run has ``"summary": true``. On resume, lines after the
resumed step (and a line torn by a kill) are cut off, so each step stands there once.
Exercise it: ``pytest tests/ms4_train/tracking/test_jsonl.py``.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ms4_train.errors import MS4Error
from ms4_train.storage import storage_errors
from ms4_train.tracking.base import Metrics
from ms4_train.untrusted import parse_json

METRICS_NAME = "metrics.jsonl"
PREVIOUS_NAME = "metrics.previous.jsonl"
_POSITION = "metrics_bytes"


class JsonlTracker:
    """Appends to ``<output_dir>/metrics.jsonl``. Satisfies ``Tracker``.

    Args:
        output_dir: made when missing.
        step: optimizer steps that the resumed run has done; 0 for a new run, which moves an older file to ``metrics.previous.jsonl``.
        resumed: what ``state`` gave when the checkpoint was written.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, output_dir: Path, *, step: int = 0, resumed: dict[str, Any] | None = None) -> None:
        self.path = output_dir / METRICS_NAME
        self._step = step
        with storage_errors(self.path):
            output_dir.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size:
                if step == 0:
                    self.path.replace(output_dir / PREVIOUS_NAME)
                else:
                    os.truncate(self.path, _kept_bytes(self.path, step, (resumed or {}).get(_POSITION)))
            self._handle = self.path.open("ab", buffering=0)

    def log(self, step: int, metrics: Metrics) -> None:
        """Append one line; it survives the death of this process at once, and of the machine after ``state``."""
        self._step = step
        self._write({"step": step, **metrics})

    def summary(self, metrics: Metrics) -> None:
        """Append the line of the finished run."""
        self._write({"step": self._step, "summary": True, **metrics})

    def state(self) -> dict[str, Any]:
        """Flush to the disk; the length of the file."""
        with storage_errors(self.path):
            os.fsync(self._handle.fileno())
        return {_POSITION: self._handle.seek(0, os.SEEK_END)}

    def close(self) -> None:
        """Flush to the disk and close."""
        if not self._handle.closed:
            with storage_errors(self.path):
                os.fsync(self._handle.fileno())
            self._handle.close()

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN or infinity; a metric that is neither number nor text is not worth an unreadable file.
        clean = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()}
        with storage_errors(self.path):
            self._handle.write(json.dumps(clean).encode() + b"\n")


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
