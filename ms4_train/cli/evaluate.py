"""``ms4 eval``: measure a model in both reasoning modes, go on with a run, and look at what a store holds.

Exercise it: ``ms4 eval tasks``, or ``pytest tests/ms4_train/cli/test_evaluate.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ms4_train.cli import eval_audit, eval_reports
from ms4_train.errors import ConfigError, EvaluationError


class _Group(TyperGroup):
    """Says what to write to those who name a file where a command is due."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and Path(args[0]).suffix in (".yaml", ".yml"):
            raise ConfigError("a file is no command.", key=f"ms4 eval {args[0]}", fix=f"write `ms4 eval run {args[0]}`.")
        return super().resolve_command(ctx, args)


app = typer.Typer(no_args_is_help=True, cls=_Group)

RUN_EXAMPLES = """
Examples:

  ms4 eval run configs/eval/arithmetic.yaml

  ms4 eval run configs/eval/arithmetic.yaml model.adapter=runs/lora/adapter label=tuned

  ms4 eval run configs/eval/aime.yaml modes.none=null modes.high.max_tokens=16384

  ms4 eval run configs/eval/server.yaml endpoint.servers.0.base_url=http://127.0.0.1:8000/v1

  ms4 eval run run.yaml --nproc 8 parallel.expert_parallel_size=8

The same command goes on after it was interrupted, and repeats no finished sample.
"""
RESUME_EXAMPLES = """
Examples:

  ms4 eval resume results.sqlite

  ms4 eval resume results.sqlite --run tuned
"""
TASKS_EXAMPLES = """
Examples:

  ms4 eval tasks
"""
SERVERS_EXAMPLES = """
Examples:

  ms4 eval servers
"""


_AllowErrors = Annotated[bool, typer.Option("--allow-errors", help="Give scores although samples ended in errors.")]
_Unsafe = Annotated[
    bool, typer.Option("--unsafe-no-sandbox", help="Run programs of models without a sandbox where there is none; rows are marked.")
]


@app.command("run", epilog=RUN_EXAMPLES)
def run(
    file: Annotated[Path, typer.Argument(help="YAML file of the run (recipe: eval).", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed.", show_default=False)] = None,
    allow_errors: _AllowErrors = False,
    unsafe: _Unsafe = False,
    nproc: Annotated[
        int | None, typer.Option("--nproc", metavar="N", help="Start N processes on this machine, one per GPU.", show_default=False)
    ] = None,
) -> None:
    """Evaluate a model and report score and output length in both reasoning modes."""
    from ms4_train.config import load_run
    from ms4_train.config.evaluation import EvalRun

    flags = ["allow_errors=true"] * allow_errors + ["sandbox.unsafe=true"] * unsafe
    config = load_run(file, [*(overrides or []), *flags])
    if not isinstance(config, EvalRun):
        raise ConfigError(f"recipe {config.recipe} does not evaluate.", file=file, key="recipe", fix=f"run `ms4 train {file}`.")
    if nproc is not None:
        from ms4_train.cli.launch import launch, require_launchable

        require_launchable(nproc)
        if nproc > 1:
            raise typer.Exit(launch(["eval", "run", str(file), *(overrides or []), *flags], nproc))
    from ms4_recipes import evaluate as program

    program.run(config)


@app.command("resume", epilog=RESUME_EXAMPLES)
def resume(
    store: Annotated[Path, typer.Argument(help="SQLite file of the run.", show_default=False)],
    name: Annotated[
        str | None,
        typer.Option(
            "--run", "--label", help="Label of a run, or the start of its id; needed where there are several.", show_default=False
        ),
    ] = None,
    allow_errors: _AllowErrors = False,
    unsafe: _Unsafe = False,
) -> None:
    """Go on with a run from what its store remembers of it, without its YAML file."""
    from ms4_evals.compare import find_run
    from ms4_evals.store.results import ResultStore
    from ms4_recipes import evaluate as program
    from ms4_train.config.evaluation import EvalRun

    with ResultStore.read(store) as reader:
        record = find_run(reader, name)
        values = reader.config(record.run_id)
    try:
        config = EvalRun.model_validate(values | {"store": str(store), "label": record.label})
    except (TypeError, ValueError) as error:
        raise EvaluationError(
            "the store does not remember a configuration that can be run.", file=store, fix="use `ms4 eval run FILE.yaml`."
        ) from error
    sandbox = config.sandbox.model_copy(update={"unsafe": config.sandbox.unsafe or unsafe})
    program.run(config.model_copy(update={"allow_errors": config.allow_errors or allow_errors, "sandbox": sandbox}))


@app.command("tasks", epilog=TASKS_EXAMPLES)
def tasks() -> None:
    """Name the tasks that a file can ask for."""
    from ms4_evals.tasks.registry import describe_tasks

    _print_table(["task", "what it is"], describe_tasks())


@app.command("servers", epilog=SERVERS_EXAMPLES)
def servers() -> None:
    """Name the kinds of servers, how each is asked to reason, and where its thinking comes back."""
    from ms4_evals.clients.servers.kinds import describe_kinds

    rows = describe_kinds()
    _print_table(list(rows[0]), rows[1:])


for _module in (eval_reports, eval_audit):
    app.registered_commands += _module.app.registered_commands


def _print_table(header: list[str], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, show_lines=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
