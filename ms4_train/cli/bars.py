"""A progress bar on standard error that is there only on a terminal and goes when the work is done.

Exercise it: ``pytest tests/ms4_train/cli/test_bars.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def counting_bar(description: str, console: Console | None = None) -> Iterator[Callable[..., None]]:
    """Draw a bar inside the block; yields a function of (done, in all, what comes), to be called from one thread."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)

        def show(done: int, total: int, what: str = "") -> None:
            bar.update(task, completed=done, total=total, description=what or description)

        yield show
