"""``ms4 checkpoint ...``: the run state of training runs: what there is, whether it is whole, deleting old ones, a model out of one.

Exercise it: ``ms4 checkpoint --help`` and ``pytest tests/ms4_train/cli/test_checkpoint.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.checkpoint.inspection import FoundCheckpoint, Pruning, Verification

LIST_EXAMPLES = """
Examples:

  ms4 checkpoint list runs/tiny/full

  ms4 checkpoint list runs/tiny/full/checkpoints --json
"""
VERIFY_EXAMPLES = """
Examples:

  ms4 checkpoint verify runs/tiny/full                           # the newest one

  ms4 checkpoint verify runs/tiny/full --all

  ms4 checkpoint verify runs/tiny/full/checkpoints/step-000100
"""
PRUNE_EXAMPLES = """
Examples:

  ms4 checkpoint prune runs/tiny/full --keep 2

  ms4 checkpoint prune runs/tiny/full --keep 3 --set-aside --yes
"""
EXPORT_EXAMPLES = """
Examples:

  ms4 checkpoint export runs/tiny/full/checkpoints/step-000100 OUT

  ms4 checkpoint export runs/tiny/lora OUT                       # its newest one

  ms4 checkpoint export runs/tiny/full OUT --base /models/base   # the base model has moved
"""

app = typer.Typer(no_args_is_help=True)

_Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's output_dir, its run file (.yaml), or its folder of checkpoints.", show_default=False)
]
_COLORS = {"whole": "green", "damaged": "red", "unreadable": "red", "quarantined": "yellow", "other version": "yellow"}


@app.command("list", epilog=LIST_EXAMPLES)
def list_checkpoints(run: _Run, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show a run's checkpoints: step, age, size, ranks, loss, and whether each is whole.

    Whole means that all files are there with their sizes; `ms4 checkpoint verify` compares sums too.
    """
    from rich.console import Console

    from ms4_train.checkpoint.inspection import checkpoints_folder, found_checkpoints

    root = checkpoints_folder(_output_dir(run))
    found = found_checkpoints(root)
    if as_json:
        typer.echo(json.dumps({"folder": str(root), "checkpoints": [item.to_json() for item in found]}, indent=2))
    else:
        _print_list(root, found, Console())


@app.command("verify", epilog=VERIFY_EXAMPLES)
def verify(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Checkpoints, or runs.", show_default=False)],
    every: Annotated[bool, typer.Option("--all", help="Of a run every checkpoint, not only the newest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare every file of checkpoints with its SHA-256 sum. Exit code 1 if one is damaged or cannot be read."""
    from rich.console import Console

    from ms4_train.checkpoint.inspection import chosen_checkpoints, verify_checkpoint
    from ms4_train.cli.bars import counting_bar

    chosen = [folder for path in folders for folder in chosen_checkpoints(_output_dir(path), every=every)]
    done = []
    for folder in chosen:
        with counting_bar(f"hashing {folder.name}") as progress:
            done.append(verify_checkpoint(folder, progress=progress))
        if not as_json:
            _print_verification(done[-1], Console())
    if as_json:
        typer.echo(json.dumps({"checkpoints": [{**vars(item), "folder": str(item.folder)} for item in done]}, indent=2))
    if not all(item.is_good for item in done):
        raise typer.Exit(1)


@app.command("prune", epilog=PRUNE_EXAMPLES)
def prune(
    run: _Run,
    keep: Annotated[int, typer.Option("--keep", help="Good checkpoints that stay, the newest; at least 2.", show_default=False)],
    aside: Annotated[bool, typer.Option("--set-aside", help="Delete quarantined, superseded and left-over ones too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a run's older checkpoints. What stays is verified first: a damaged one does not count, so a good one is never the price.

    Refused while the run is going on; it prunes by itself (training.save_total_limit).
    """
    from rich.console import Console

    from ms4_train.checkpoint.folders import FolderLock
    from ms4_train.checkpoint.inspection import carry_out, checkpoints_folder, plan_pruning
    from ms4_train.cli.bars import counting_bar

    root = checkpoints_folder(_output_dir(run))
    lock = FolderLock(root.parent)
    try:
        with counting_bar("hashing what stays") as progress:
            pruning = plan_pruning(root, keep, aside=aside, progress=progress)
        _print_pruning(pruning, Console())
        if pruning.doomed and (yes or typer.confirm("Delete?", default=False)):
            carry_out(pruning)
            typer.echo(f"{len(pruning.doomed):,} deleted")
        else:
            typer.echo("nothing was deleted")
    finally:
        lock.release()


@app.command("export", epilog=EXPORT_EXAMPLES)
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run (its newest).", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; it must be empty or absent.", show_default=False)],
    base: Annotated[
        Path | None, typer.Option("--base", metavar="MODEL", help="Folder of the base model, where it is not in its old place.")
    ] = None,
) -> None:
    """Write the model, or the adapter, that a run had when it saved: the files that the run itself writes at its end, without training.

    Every file is verified first. Weights go through memory one parameter at a time.
    """
    from ms4_recipes.export_checkpoint import export_checkpoint
    from ms4_train.checkpoint.inspection import chosen_checkpoints
    from ms4_train.cli.bars import counting_bar

    (folder,) = chosen_checkpoints(_output_dir(checkpoint))
    with counting_bar("parameters") as progress:
        done = export_checkpoint(folder, out, base=base, progress=progress)
    typer.echo(f"written: {out}, the {done.kind} of step {done.step}")


def _output_dir(run: Path) -> Path:
    """The folder of a run; a run file names it."""
    if run.suffix not in (".yaml", ".yml") or not run.is_file():
        return run
    from ms4_train.config import SftRun, load_run
    from ms4_train.errors import ConfigError

    config = load_run(run)
    if not isinstance(config, SftRun):
        raise ConfigError(f"recipe {config.recipe} writes no run state.", file=run, key="recipe", fix="name the file of a training run.")
    return Path(config.output_dir)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _mesh(item: FoundCheckpoint) -> str:
    mesh = item.mesh
    if not mesh:
        return "?"
    words = [f"{mesh['world_size']} rank{'s' if mesh['world_size'] > 1 else ''}"]
    words += [f"EP {mesh['expert_parallel_size']}"] if mesh["expert_parallel_size"] > 1 else []
    words += [f"ZeRO {mesh['zero_stage']}"] if mesh["zero_stage"] else []
    return ", ".join(words)


def _print_list(root: Path, found: list[FoundCheckpoint], console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"Checkpoints in {root}", title_justify="left")
    for name in ("step", "age", "bytes", "loss"):
        table.add_column(name, justify="right")
    for name in ("ranks", "state"):
        table.add_column(name)
    for item in found:
        loss = "" if item.loss is None else f"{item.loss:.4f}"
        state = f"[{_COLORS[item.state]}]{item.state}[/]" if item.state in _COLORS else item.state
        table.add_row(f"{item.step:,}", _age(item.age_seconds), f"{item.num_bytes:,}", loss, _mesh(item), state)
    console.print(table, highlight=False)
    for item in found:
        if item.problem is not None:
            console.print(f"{item.state}: {item.problem}", style="red", highlight=False, markup=False, soft_wrap=True)


def _print_verification(item: Verification, console: Console) -> None:
    def line(text: str, style: str) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    for problem in item.problems:
        line(f"damaged: {problem}", "red")
    for problem in item.unreadable:
        line(f"not verified: {problem}", "red")
    if item.is_good:
        speed = item.num_bytes / max(item.seconds, 1e-9) / 1e9
        line(f"good: {item.folder}: {item.num_files:,} files, {item.num_bytes:,} bytes, {speed:.2f} GB/s", "green")


def _print_pruning(pruning: Pruning, console: Console) -> None:
    def line(word: str, folder: Path, style: str | None) -> None:
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        console.print(f"{word}: {folder}, {size:,} bytes", style=style, highlight=False, markup=False, soft_wrap=True)

    for folder in pruning.kept:
        line("stays, verified", folder, "green")
    for folder in pruning.damaged:
        line("stays, damaged or unreadable: it does not count", folder, "red")
    for folder in pruning.doomed:
        line("goes", folder, None)
