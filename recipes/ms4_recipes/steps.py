"""What the quickstarts share: steps that are announced and timed, and configurations of training with overrides.

Exercise it: ``pytest tests/recipes/ms4_recipes/test_steps.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ms4_train.config import load_run
from ms4_train.config.schema import SftRun
from ms4_train.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


class Steps:
    """A base of runs made of steps.

    Attributes:
        console: what they print to.
        seconds: wall seconds of each step.
    """

    console: Console
    seconds: dict[str, float]

    @contextmanager
    def step(self, name: str, command: str) -> Iterator[None]:
        """Announce a step with the command that does the same, and time it."""
        self.console.rule(f"[bold]{name}", align="left")
        self.console.print(f"$ {command}", style="dim", markup=False, highlight=False, soft_wrap=True)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start

    def times(self) -> Table:
        """Where the time went."""
        table = Table("step", "seconds", title="where the time went", title_justify="left")
        table.columns[1].justify = "right"
        for name, seconds in self.seconds.items():
            table.add_row(name, f"{seconds:.1f}")
        table.add_section()
        table.add_row("all", f"{sum(self.seconds.values()):.1f}")
        return table


def training_config(file: Path, overrides: Sequence[str]) -> SftRun:
    """A configuration of training with overrides.

    Raises:
        ConfigError: the file is another program's, or cannot be used.
    """
    config = load_run(file, list(overrides))
    if not isinstance(config, SftRun):
        raise ConfigError("is not a training configuration.", file=file, key="recipe")
    return config


def shown(path: Path) -> str:
    """A file of ``configs/`` as a user names it."""
    return str(path.relative_to(CONFIGS.parent))
