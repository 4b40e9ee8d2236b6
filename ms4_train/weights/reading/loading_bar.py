"""A bar on the terminal while a large model is read.

Exercise it: ``pytest tests/ms4_train/weights/reading/test_loading_bar.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ms4_train.weights.reading.loading import Progress

if TYPE_CHECKING:
    from rich.console import Console

SMALLEST_BYTES = 2 << 30
"""A model below this is there before a bar could be read."""


@contextlib.contextmanager
def loading_bar(title: str, *, console: Console | None = None) -> Iterator[Progress]:
    """Give a callback for ``load_model(progress=...)``; the bar is taken away at the end.

    Args:
        title: beside the bar.
        console: where to; standard error by default. Nothing is drawn where it is no terminal.
    """
    import rich.console
    import rich.progress as parts

    console = console or rich.console.Console(stderr=True)
    columns = (parts.TextColumn("{task.description}"), parts.BarColumn(), parts.DownloadColumn(), parts.TransferSpeedColumn())
    bar = parts.Progress(*columns, parts.TimeRemainingColumn(), console=console, transient=True)
    tasks: list[parts.TaskID] = []

    def show(done: int, total: int) -> None:
        if total < SMALLEST_BYTES or not console.is_terminal:
            return
        if not tasks:
            bar.start()
            tasks.append(bar.add_task(title, total=total))
        bar.update(tasks[0], completed=done)

    try:
        yield show
    finally:
        bar.stop()
