"""The quickstart: from nothing to a two-mode leaderboard, on a CPU, through the same programs that train the real model.

Reads top to bottom: tokenizer, rows, fresh model, full fine-tuning on one kind of problem, evaluation, LoRA on a second kind,
evaluation again, leaderboard. Every step leaves files that its ``ms4`` command could have made, and is left out when an interrupted
run already finished it. Exercise it: ``make quickstart``, or ``python -m ms4_recipes.quickstart OUTPUT``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ms4_train.config import load_run
from ms4_train.config.evaluation import EvalRun
from ms4_train.config.schema import SftRun
from ms4_train.errors import ConfigError

CONFIGS = Path("configs")
TOKENIZER_RANKS = 512
ROWS = {"digits": 36_000, "letters": 12_000}
VALIDATION_ROWS = 200
FINISHED = "finished"


@dataclass
class Stopwatch:
    """Wall seconds per step, in the order the steps were taken."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, console: Console) -> Iterator[None]:
        """Time the block under ``name`` and say that it began."""
        console.rule(f"[bold]{name}", align="left")
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


def prepare_output(output: Path) -> None:
    """Start over after a finished run; go on after an interrupted one."""
    if (output / FINISHED).exists():
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)


def write_rows(output: Path) -> None:
    """Training and validation rows of both kinds as JSON lines; held-out problems are drawn by the evaluation itself."""
    from ms4_evals.tasks.arithmetic import write_training_rows

    for kind, count in ROWS.items():
        write_training_rows(kind, count, 1, output / "data" / f"{kind}-train.jsonl")
        write_training_rows(kind, VALIDATION_ROWS, 2, output / "data" / f"{kind}-validation.jsonl")


def train(config: str, output: Path) -> Path:
    """Run one training recipe with its folders under ``output``."""
    from ms4_recipes import sft

    run = load_run(CONFIGS / "train" / config, [f"output_dir={output / Path(config).stem}"])
    if not isinstance(run, SftRun):
        raise ConfigError("the quickstart needs a training configuration", file=CONFIGS / "train" / config, key="recipe")
    return sft.run(run)


def evaluate(config: str, label: str, overrides: Sequence[str], output: Path) -> Path:
    """Evaluate one model in both modes on the held-out problems of both kinds."""
    from ms4_recipes import evaluate as program

    run = load_run(CONFIGS / "eval" / config, [f"label={label}", f"store={output / 'results.sqlite'}", *overrides])
    if not isinstance(run, EvalRun):
        raise ConfigError("the quickstart needs an evaluation configuration", file=CONFIGS / "eval" / config, key="recipe")
    return program.run(run)


def once(path: Path, make: Callable[[], object]) -> None:
    """Call ``make`` unless an interrupted run already left ``path``."""
    if not path.exists():
        make()
