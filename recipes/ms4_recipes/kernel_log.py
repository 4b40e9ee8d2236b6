"""What the kernels decided, said once in a run's output: which implementation runs each operation, and why.

Exercise it: ``pytest tests/recipes/ms4_recipes/test_kernel_log.py``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from rich.console import Console

_LOGGER = logging.getLogger("ms4_kernels")


class _ConsoleHandler(logging.Handler):
    """Records below a warning as lines of the console; warnings go where all warnings go."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"kernels: {record.getMessage()}", markup=False)


@contextlib.contextmanager
def kernel_choices_shown(console: Console) -> Iterator[None]:
    """Print the decisions of :mod:`ms4_kernels` that are made in the block; each is made, and said, once per process."""
    handler, level = _ConsoleHandler(console), _LOGGER.level
    handler.addFilter(lambda record: record.levelno < logging.WARNING)
    _LOGGER.addHandler(handler)
    if _LOGGER.getEffectiveLevel() > logging.INFO:
        _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
