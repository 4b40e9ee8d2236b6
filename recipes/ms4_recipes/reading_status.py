"""How far the reading of rows is, on a terminal: the first minutes of a run on many rows, or on images.

Exercise it: ``pytest tests/recipes/ms4_recipes/test_reading_status.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from ms4_train.data.preparation import Progress
from ms4_train.parallel import progress


@contextlib.contextmanager
def reading_shown(console: Console) -> Iterator[Progress]:
    """Give a callback that shows a source and its rows read so far; the line is gone after the block, and absent without a terminal."""
    with console.status("reading rows") as status:

        def show(path: str, rows: int) -> None:
            progress.at("load")
            status.update(Text(f"reading rows: {path}, {rows:,} so far"))

        yield show
