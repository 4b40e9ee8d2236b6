"""``ms4 leaderboard``: results of one or more stores side by side, as a site or on the terminal.

Exercise it: ``ms4 leaderboard --help``, or ``pytest tests/ms4_train/cli/test_leaderboard.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ms4_evals.leaderboard.collect import Board

app = typer.Typer(no_args_is_help=True)

BUILD_EXAMPLES = """
Examples:

  ms4 leaderboard build results.sqlite --out leaderboard

  ms4 leaderboard build runs/*/results.sqlite --out public --title "Small models"

Open the folder's index.html with a browser; no server is needed. To publish it, copy the folder to any web server.
"""
SHOW_EXAMPLES = """
Examples:

  ms4 leaderboard show results.sqlite

  ms4 leaderboard show runs/*/results.sqlite --allow-errors
"""

StoresArgument = Annotated[list[Path], typer.Argument(help="SQLite files that `ms4 eval run` wrote.", show_default=False)]
AllowErrorsOption = Annotated[
    bool,
    typer.Option("--allow-errors", help="Give scores of unfinished evaluations too: what is missing is left out, and the row is marked."),
]


@app.command("build", epilog=BUILD_EXAMPLES)
def build(
    stores: StoresArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for index.html with its data, leaderboard.png and leaderboard.json.")] = Path(
        "leaderboard"
    ),
    allow_errors: AllowErrorsOption = False,
    title: Annotated[str, typer.Option("--title", help="Of the page.")] = "Leaderboard",
) -> None:
    """Make a site of everything that the stores hold: tables, charts, and every sample to look at."""
    from ms4_evals.leaderboard.collect import collect_boards
    from ms4_evals.leaderboard.publish import publish

    boards = collect_boards(stores, allow_errors=allow_errors)
    written = publish(boards, out, title=title)  # before the table, so that `... | head` has its files too
    _print_boards(boards)
    for path in (written.page, written.plot, written.values):
        typer.echo(path)


@app.command("show", epilog=SHOW_EXAMPLES)
def show(stores: StoresArgument, allow_errors: AllowErrorsOption = False) -> None:
    """Print the scores of the stores, with intervals and lengths."""
    from ms4_evals.leaderboard.collect import collect_boards

    _print_boards(collect_boards(stores, allow_errors=allow_errors))


def _print_boards(boards: list[Board]) -> None:
    from rich.console import Console

    from ms4_evals.leaderboard.table import board_table

    console = Console()
    for board in boards:
        console.print(board_table(board))
        console.print()
