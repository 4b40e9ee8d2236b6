"""A progress display of an evaluation: one bar per task and mode, and tokens per second.

Shown on a terminal only; elsewhere it prints nothing. Exercise it: ``pytest tests/evals/ms4_evals/test_progress.py``.
"""

from __future__ import annotations

import time
from types import TracebackType

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

_TOKENS_EVERY_SECONDS = 0.5


class Progress:
    """Bars that the runner moves; a context manager around the drawing.

    Args:
        console: where to draw; None draws nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._bars = rich.progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
            disable=console is None or not console.is_terminal,
        )
        self._ids: dict[tuple[str, str], TaskID] = {}
        self._grading: TaskID | None = None
        self._started = self._shown = 0.0
        self.errors = 0

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def add_samples(self, task: str, mode: str, total: int, finished: int) -> None:
        """Announce the samples of a task and mode, of which some are finished already."""
        self._ids[task, mode] = self._bars.add_task(f"{task} {mode}", total=total, completed=finished, rate="")

    def finish(self, task: str, mode: str, *, is_error: bool = False) -> None:
        """One more sample is finished."""
        self._bars.advance(self._ids[task, mode])
        self.errors += is_error
        if is_error:
            self._bars.update(self._ids[task, mode], description=f"{task} {mode} [red]{self.errors} errors[/red]")

    def grade(self, waiting: int) -> None:
        """Everything is drawn; so many samples wait for their verdict."""
        if waiting:
            self._grading = self._bars.add_task("grading", total=waiting, rate="")

    def graded(self) -> None:
        """One more verdict has come."""
        if self._grading is not None:
            self._bars.advance(self._grading)

    def tokens(self, generated: int) -> None:
        """So many tokens have been generated since the drawing began."""
        now = time.monotonic()
        if now - self._shown >= _TOKENS_EVERY_SECONDS:
            self._shown = now
            rate = generated / max(now - self._started, 1e-9)
            self._bars.update(list(self._ids.values())[-1], rate=f"{rate:,.0f} tokens/s in all")

    def counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(finished, all) samples per task and mode."""
        tasks = {task.id: task for task in self._bars.tasks}
        return {key: (int(tasks[task_id].completed), int(tasks[task_id].total or 0)) for key, task_id in self._ids.items()}
