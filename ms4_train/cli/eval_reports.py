"""``ms4 eval status|report|compare|export``: what a results store holds, as tables, reports, comparisons and files for other programs.

Exercise it: ``ms4 eval status results.sqlite``, or ``pytest tests/ms4_train/cli/test_eval_reports.py``.
"""

from __future__ import annotations

import contextlib
import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ms4_train.errors import EvaluationError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True)

STATUS_EXAMPLES = """
Examples:

  ms4 eval status results.sqlite

  ms4 eval status results.sqlite --watch 10

  ms4 eval status runs/*/results.sqlite --json
"""
REPORT_EXAMPLES = """
Examples:

  ms4 eval report results.sqlite

  ms4 eval report results.sqlite --run tuned --out reports

  ms4 eval report results.sqlite --allow-errors --verify
"""
COMPARE_EXAMPLES = """
Examples:

  ms4 eval compare base.sqlite tuned.sqlite

  ms4 eval compare results.sqlite --first tuned --second base

  ms4 eval compare base.sqlite tuned.sqlite --task aime_2025 --mode high --out comparison
"""
EXPORT_EXAMPLES = """
Examples:

  ms4 eval export results.sqlite samples.parquet

  ms4 eval export results.sqlite samples.jsonl --run tuned
"""


class ExportFormat(StrEnum):
    """What a file of samples can be."""

    jsonl = "jsonl"
    parquet = "parquet"


_Store = Annotated[Path, typer.Argument(help="SQLite file that `ms4 eval run` wrote.", show_default=False)]
_Run = Annotated[
    str | None, typer.Option("--run", help="Label of a run, or the start of its id; needed where there are several.", show_default=False)
]
_AllowErrors = Annotated[
    bool, typer.Option("--allow-errors", help="Give scores although samples are missing, ungraded or errors; those are left out.")
]
_Confidence = Annotated[float | None, typer.Option(min=0.5, max=0.999, help="Of the intervals.", show_default="as the run was started")]


@app.command("status", epilog=STATUS_EXAMPLES)
def status(
    stores: Annotated[list[Path], typer.Argument(help="SQLite files that `ms4 eval run` writes or wrote.", show_default=False)],
    watch: Annotated[float | None, typer.Option(min=0.1, help="Show it anew every so many seconds, until interrupted.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line per store.")] = False,
) -> None:
    """Show how far every run of a store is: drawn, graded, errors, score so far, speed, time left."""
    from rich.console import Console

    console = Console()
    while True:
        if watch is not None and console.is_terminal and not as_json:
            console.clear()
        _print_status(stores, console, as_json=as_json)
        if watch is None:
            return
        time.sleep(watch)


@app.command("report", epilog=REPORT_EXAMPLES)
def report(
    store: _Store,
    run: _Run = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="STORE-reports beside the store")] = None,
    allow_errors: _AllowErrors = False,
    confidence: _Confidence = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw PNG images too.")] = True,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every record with its seal first.")] = False,
) -> None:
    """Write the report of a run as JSON and Markdown, with plots."""
    from ms4_evals.compare import find_run
    from ms4_evals.report import build_report, write_report
    from ms4_evals.report_text import headlines
    from ms4_evals.store.results import ResultStore

    with ResultStore.read(store) as reader:
        record = find_run(reader, run)
        if verify:
            typer.echo(f"{reader.verify(record.run_id):,} records are as they were written.")
        settings = _settings(reader.config(record.run_id), confidence)
        built = build_report(reader, record, reader.evaluations(record.run_id), allow_errors=allow_errors, **settings)
    images: dict[str, bytes] = {}
    if plots:
        from ms4_evals.plots import report_plots

        images = report_plots(built)
    _, text = write_report(built, out or store.with_name(f"{store.stem}-reports"), plots=images)
    for line in headlines(built):
        typer.echo(line)
    typer.echo(f"report: {text}")
    if not built["complete"] and not allow_errors:
        raise EvaluationError(
            "the run is not complete, so some scores are refused.",
            file=store,
            fix="go on with it (`ms4 eval resume`); --allow-errors scores what there is.",
        )


@app.command("compare", epilog=COMPARE_EXAMPLES)
def compare(
    store: _Store,
    other: Annotated[Path | None, typer.Argument(help="A second store; default: the same one.", show_default=False)] = None,
    first: Annotated[str | None, typer.Option("--first", help="Label or id of the first run.", show_default=False)] = None,
    second: Annotated[str | None, typer.Option("--second", help="Label or id of the second run.", show_default=False)] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this task; as often as needed.", show_default=False)] = None,
    mode: Annotated[list[str] | None, typer.Option("--mode", help="Only this mode.", show_default=False)] = None,
    allow_errors: _AllowErrors = False,
    confidence: _Confidence = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for comparison.json and comparison.md.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare two runs problem by problem: scores, exact tests, lengths, and the problems on which they differ."""
    from rich.console import Console

    from ms4_evals.compare import Side, compare_runs, find_run
    from ms4_evals.compare_text import comparison_tables
    from ms4_evals.store.results import ResultStore

    if other is None and (first is None or second is None):
        raise EvaluationError("two runs of one store are named.", file=store, key="--first, --second", fix="name both, or a second store.")
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(ResultStore.read(store))
        other_reader = stack.enter_context(ResultStore.read(other)) if other is not None else reader
        sides = Side(reader, find_run(reader, first)), Side(other_reader, find_run(other_reader, second))
        settings = _settings(reader.config(sides[0].run.run_id), confidence)
        found = compare_runs(*sides, tasks=task or (), modes=mode or (), allow_errors=allow_errors, **settings)
    files = _write_comparison(found, out) if out is not None else []
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return
    console = Console()
    for table in comparison_tables(found):
        console.print(table)
        console.print()
    for side, label in (("only_first", "first"), ("only_second", "second")):
        if found[side]:
            console.print(f"only in the {label}: {'; '.join(found[side])}", markup=False, highlight=False)
    for file in files:
        typer.echo(file)


@app.command("export", epilog=EXPORT_EXAMPLES)
def export(
    store: _Store,
    out: Annotated[Path, typer.Argument(help="File to write; .jsonl or .parquet.", show_default=False)],
    run: Annotated[
        str | None, typer.Option("--run", help="Label of a run, or the start of its id.", show_default="every run of the store")
    ] = None,
    file_format: Annotated[ExportFormat | None, typer.Option("--format", help="Default: by the ending of the file.")] = None,
) -> None:
    """Write every sample, with texts and verdicts, as JSON lines or Parquet."""
    from ms4_evals.compare import find_run
    from ms4_evals.export import export_samples
    from ms4_evals.store.results import ResultStore

    endings = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
    chosen = file_format.value if file_format else endings.get(out.suffix.lower())
    if chosen is None:
        raise EvaluationError("the ending tells no format.", file=out, key="OUT", fix="name a .jsonl or .parquet file, or use --format.")
    with ResultStore.read(store) as reader:
        run_id = find_run(reader, run).run_id if run is not None else None
        rows = export_samples(reader, out, "jsonl" if chosen == "jsonl" else "parquet", run_id=run_id)
    typer.echo(f"{rows:,} samples: {out}")


def _print_status(stores: list[Path], console: Console, *, as_json: bool) -> None:
    from ms4_evals.status import status_table, status_values, store_status
    from ms4_evals.store.results import ResultStore

    for path in stores:
        with ResultStore.read(path) as reader:
            found = store_status(reader)
        if as_json:
            typer.echo(json.dumps({"store": str(path)} | status_values(found), ensure_ascii=False, allow_nan=False))
            continue
        if len(stores) > 1:
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)
        for item in found:
            console.print(status_table(item))
        if not found:
            console.print("the store holds no run.", highlight=False)


def _settings(config: Any, confidence: float | None) -> dict[str, Any]:
    """Confidence and resamples that a run was started with, so that its report is the same again."""
    values = config if isinstance(config, dict) else {}
    known, resamples = values.get("confidence"), values.get("bootstrap_samples")
    is_share = isinstance(known, float) and 0.5 < known < 1
    return {
        "confidence": confidence or (known if is_share else 0.95),
        "resamples": resamples if isinstance(resamples, int) and 0 < resamples <= 1_000_000 else 10_000,
    }


def _write_comparison(found: dict[str, Any], folder: Path) -> list[Path]:
    from ms4_evals.compare_text import comparison_markdown
    from ms4_train.storage import atomic_write_text, storage_errors

    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    values, text = folder / "comparison.json", folder / "comparison.md"
    atomic_write_text(values, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    atomic_write_text(text, comparison_markdown(found))
    return [values, text]
