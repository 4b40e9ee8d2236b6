"""Keeps the best model of a run by a metric of its evaluation: ``output_dir/best`` holds its adapter or weights, and ``best.json``.

Exercise it: ``pytest tests/recipes/ms4_recipes/test_best_model.py``.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ms4_train.errors import CheckpointError, ConfigError
from ms4_train.storage import atomic_write_text
from ms4_train.untrusted import parse_json, read_bytes

_LOG = logging.getLogger("ms4_train")
_MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Best:
    """The best so far."""

    step: int
    metric: str
    value: float


class BestModel:
    """Saves the model whenever its metric is better than ever before.

    Args:
        folder: ``output_dir/best``.
        metric: e.g. ``aime_2025/high/score``; ``eval/`` before it is understood.
        greater_is_better: else less is.
        known: every metric that the evaluation gives.

    Raises:
        ConfigError: the evaluation gives no such metric.
        CheckpointError: ``best.json`` of an earlier start cannot be read.
    """

    def __init__(self, folder: Path, metric: str, *, greater_is_better: bool, known: Iterable[str]) -> None:
        names = {name.removeprefix("eval/") for name in known}
        self.metric = metric.removeprefix("eval/")
        if self.metric not in names:
            near = difflib.get_close_matches(self.metric, names, n=3, cutoff=0.3) or sorted(names)[:3]
            raise ConfigError(
                f"the evaluation gives no metric {ascii(metric)[:80]}.",
                key="evaluation.metric_for_best_model",
                fix=f"use {' or '.join(near)}.",
            )
        self._folder = folder
        self._sign = 1.0 if greater_is_better else -1.0
        self.best = self._read()

    def offer(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], object]) -> bool:
        """Save the model of this step if its metric is the best; returns whether it was.

        The numbers are written after the model, so a run that is killed in between finds the older numbers, and its repeated
        step saves again.

        Args:
            step: optimizer steps done.
            metrics: of the evaluation at this step; without ours (no finished sample) nothing happens.
            save: writes the model below the folder it is given.

        Raises:
            StorageError: the disk is full.
        """
        if not self.is_best(step, metrics):
            return False
        save(self._folder)
        self.record(step, metrics)
        return True

    def is_best(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether the model of this step is to be saved."""
        value = metrics.get(f"eval/{self.metric}")
        return value is not None and (self.best is None or self._sign * value > self._sign * self.best.value or step == self.best.step)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the numbers of the model that was just saved.

        Raises:
            StorageError: the disk is full.
        """
        self.best = Best(step, self.metric, metrics[f"eval/{self.metric}"])
        atomic_write_text(self._folder / "best.json", json.dumps(self.best.__dict__, indent=2) + "\n")
        _LOG.info("best %s so far: %g after step %d, kept in %s", self.metric, self.best.value, step, self._folder)

    def _read(self) -> Best | None:
        path = self._folder / "best.json"
        if not path.is_file():
            return None
        values = parse_json(read_bytes(path, max_bytes=_MAX_BYTES), file=path)
        try:
            best = Best(int(values["step"]), str(values["metric"]), float(values["value"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError("is no record of a best model.", file=path, fix="remove it; the best is then found anew.") from error
        return best if best.metric == self.metric else None
