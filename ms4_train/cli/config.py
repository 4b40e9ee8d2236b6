"""``ms4 config check|show|schema|import-axolotl``: run files without running them.

Exercise it: ``pytest tests/ms4_train/cli/test_config.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ms4_train.config import SftRun

app = typer.Typer(no_args_is_help=True)

_File = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Run file.", show_default=False)]
_Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes, such as training.learning_rate=1e-4.", show_default=False)
]


@app.command(
    epilog="""Examples:

ms4 config check configs/train/tiny_full.yaml

ms4 config check run.yaml training.learning_rate=1e-4 data.train.0.path=rows.jsonl"""
)
def check(file: _File, overrides: _Overrides = None) -> None:
    """Check a run file: every problem with its line, key and fix. Exit code 2 if there is one.

    The number of processes is checked too, as far as it is known: data_parallel_size, and the model's experts where its folder is there.
    """
    from ms4_train.config import SftRun, load_run
    from ms4_train.errors import ParallelError

    run = load_run(file, overrides or [])
    if isinstance(run, SftRun):
        try:
            _check_mesh(run)
        except ParallelError as error:
            error.file = str(file)
            raise
    typer.echo(f"{file}: ok (recipe {run.recipe})")
    if isinstance(run, SftRun) and not Path(run.model.path).is_dir():
        typer.echo(f"not checked: what depends on the model; there is no folder {run.model.path} here", err=True)


def _check_mesh(run: SftRun) -> None:
    from ms4_train.config.mesh import check_mesh, planned_processes

    processes = planned_processes(run.parallel)
    check_mesh(run.parallel, processes)
    if run.parallel.expert_parallel_size > 1 and Path(run.model.path).is_dir():
        from ms4_train.weights import read_config

        check_mesh(run.parallel, processes, read_config(run.model.path).n_routed_experts)


@app.command(
    epilog="""Examples:

ms4 config show configs/train/tiny_full.yaml

ms4 config show run.yaml adapter.r=8 > resolved.yaml"""
)
def show(file: _File, overrides: _Overrides = None) -> None:
    """Print the whole resolved run, defaults and overrides included, as a run file."""
    from ms4_train.config import load_run, to_yaml

    typer.echo(to_yaml(load_run(file, overrides or [])), nl=False)


@app.command(
    epilog="""Examples:

ms4 config schema --out ms4.schema.json

ms4 config schema --recipe sft

An editor with YAML support completes and checks keys when a run file's first line is

# yaml-language-server: $schema=ms4.schema.json"""
)
def schema(
    recipe: Annotated[str | None, typer.Option(help="Only this recipe; default: all of them.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Write here instead of to the terminal.", show_default=False)] = None,
) -> None:
    """Print the JSON Schema of run files, for editors."""
    from ms4_train.config import json_schema
    from ms4_train.storage import atomic_write_text

    text = json.dumps(json_schema(recipe), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        atomic_write_text(out, text)
        typer.echo(f"wrote {out}")


@app.command(
    "import-axolotl",
    epilog="""Examples:

ms4 config import-axolotl qlora-text.yml

ms4 config import-axolotl qlora-text.yml --out run.yaml && ms4 config check run.yaml""",
)
def import_axolotl(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="axolotl's YAML file.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Write the run file here instead of to the terminal.", show_default=False)] = None,
) -> None:
    """Translate a file of axolotl's into a run file, and report what became of every key.

    The run file goes to standard output, the report to standard error: what was translated, what was dropped and why, and where the
    original trains less, or something else, than it says.
    """
    from ms4_train.config.importing.axolotl import import_axolotl as translate
    from ms4_train.config.importing.report import commented_yaml, report
    from ms4_train.storage import atomic_write_text

    draft = translate(file)
    if out is None:
        typer.echo(commented_yaml(draft), nl=False)
    else:
        atomic_write_text(out, commented_yaml(draft))
    typer.echo(report(draft), nl=False, err=True)
    if out is not None:
        typer.echo(f"wrote {out}")
