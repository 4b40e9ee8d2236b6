"""``ms4 eval`` and ``ms4 leaderboard``: measure a model in both reasoning modes, and put results side by side.

Exercise it: ``ms4 eval --list``, or ``pytest tests/ms4_train/cli/test_evaluate.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ms4_train.errors import ConfigError

app = typer.Typer()

EVAL_EXAMPLES = """
Examples:

  ms4 eval --list

  ms4 eval configs/eval/arithmetic.yaml

  ms4 eval configs/eval/arithmetic.yaml model.adapter=runs/lora/adapter label=tuned

  ms4 eval configs/eval/aime.yaml modes.none=null modes.high.max_tokens=16384

The same command goes on after it was interrupted, and repeats no finished sample.
"""
LEADERBOARD_EXAMPLES = """
Examples:

  ms4 leaderboard results.sqlite --out leaderboard

  ms4 leaderboard runs/*/results.sqlite --out public
"""


@app.command("eval", epilog=EVAL_EXAMPLES)
def evaluate(
    file: Annotated[Path | None, typer.Argument(help="YAML file of the run (recipe: eval).", show_default=False)] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed.", show_default=False)] = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="Name the tasks that a file can ask for, and stop.")] = False,
) -> None:
    """Evaluate a model and report score and output length in both reasoning modes."""
    if list_tasks:
        _print_tasks()
        return
    if file is None:
        raise ConfigError("no file is named.", key="FILE", fix="name a YAML file, e.g. configs/eval/arithmetic.yaml, or use --list.")
    from ms4_train.config import load_run
    from ms4_train.config.evaluation import EvalRun

    config = load_run(file, overrides or [])
    if not isinstance(config, EvalRun):
        raise ConfigError(f"recipe {config.recipe} does not evaluate.", file=file, key="recipe", fix=f"run `ms4 train {file}`.")
    from ms4_recipes import evaluate as program

    program.run(config)


@app.command("leaderboard", epilog=LEADERBOARD_EXAMPLES)
def leaderboard(
    stores: Annotated[list[Path], typer.Argument(help="SQLite files that `ms4 eval` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for leaderboard.html, leaderboard.png and leaderboard.json.")] = Path(
        "leaderboard"
    ),
) -> None:
    """Print the results of one or more stores as a table, and write them as a page, a plot and JSON."""
    from rich.console import Console

    from ms4_evals.leaderboard.collect import collect_boards
    from ms4_evals.leaderboard.publish import publish
    from ms4_evals.leaderboard.table import board_table

    boards = collect_boards(stores)
    written = publish(boards, out)  # before the table, so that `... | head` has its files too
    console = Console()
    for board in boards:
        console.print(board_table(board))
        console.print()
    for path in (written.page, written.plot, written.values):
        typer.echo(path)


def _print_tasks() -> None:
    from rich.console import Console
    from rich.table import Table

    from ms4_evals.tasks.registry import describe_tasks

    table = Table("task", "what it is", title="Tasks")
    for name, description in describe_tasks():
        table.add_row(name, description)
    Console().print(table)
