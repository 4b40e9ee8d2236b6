"""Progress in the terminal: a bar with loss, tokens per second and the time left; plain lines where there is no terminal.

Exercise it: ``pytest tests/ms4_train/tracking/test_console.py``, or run ``ms4 train`` with any file of ``configs/train``.
"""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ms4_train.tracking.base import Metrics

PLAIN_SECONDS = 10.0
"""At most one plain line of training metrics in this time, so that a log file stays readable."""
REFRESH_PER_SECOND = 2
LINE_KEYS = ("loss", "learning_rate", "tokens_per_second")
"""What a plain line of training shows; metrics.jsonl has the rest."""

_FORMATS = {
    "loss": "{:.4f}",
    "eval_loss": "{:.4f}",
    "learning_rate": "{:.2e}",
    "grad_norm": "{:.3f}",
    "tokens_per_second": "{:,.0f}",
    "mfu": "{:.1%}",
    "epoch": "{:.2f}",
    "router_max_over_mean": "{:.2f}",
    "expert_bytes_dispatch": "{:,.0f}",
    "expert_bytes_combine": "{:,.0f}",
    "expert_bytes_metadata": "{:,.0f}",
}


class ConsoleTracker:
    """Shows metrics as they come. Satisfies ``Tracker``.

    Args:
        total_steps: length of the run.
        step: steps that a resumed run has done already.
        console: where to write; default: the terminal, or standard output.
    """

    def __init__(self, total_steps: int, *, step: int = 0, console: Console | None = None) -> None:
        self._console = console or Console()
        self._total = total_steps
        self._first = step
        self._started = time.monotonic()
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[metrics]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                refresh_per_second=REFRESH_PER_SECOND,
            )
            self._task = self._bar.add_task("train", total=total_steps, completed=step, metrics="")
            self._bar.start()

    def log(self, step: int, metrics: Metrics) -> None:
        """Move the bar, or print a line when the last one is old enough. Evaluations are always printed."""
        is_evaluation = "loss" not in metrics
        if self._bar is not None:
            if is_evaluation:
                self._bar.console.print(f"step {step}/{self._total}: {_shown(metrics)}", highlight=False)
            else:
                short = {key: metrics[key] for key in ("loss", "tokens_per_second") if key in metrics}
                self._bar.update(self._task, completed=step, metrics=_shown(short))
            return
        now = time.monotonic()
        if is_evaluation or step >= self._total or now - self._last_line >= PLAIN_SECONDS:
            if not is_evaluation:
                self._last_line = now
            shown = metrics if is_evaluation else {key: metrics[key] for key in LINE_KEYS if key in metrics}
            self._console.print(f"step {step}/{self._total}: {_shown(shown)}{self._time_left(step, now)}", highlight=False, soft_wrap=True)

    def summary(self, metrics: Metrics) -> None:
        """Print the results of the run."""
        self._stop()
        self._console.print(f"done: {_shown(metrics)}", highlight=False, soft_wrap=True)

    def state(self) -> dict[str, Any]:
        """Nothing needs keeping."""
        return {}

    def close(self) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _time_left(self, step: int, now: float) -> str:
        done = step - self._first
        if done <= 0 or step >= self._total:
            return ""
        return f", left {_duration((now - self._started) / done * (self._total - step))}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _shown(metrics: Metrics) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_value(key, value)}" for key, value in metrics.items())


def _value(key: str, value: float | int | str) -> str:
    if isinstance(value, float):
        return _FORMATS.get(key, "{:.4g}").format(value)
    return f"{value:,}" if isinstance(value, int) else value
