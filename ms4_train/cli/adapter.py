"""``ms4 adapter ...``: what an adapter holds, the same adapter in another form, and what presets match on a model.

Exercise it: ``ms4 adapter --help`` and ``pytest tests/ms4_train/cli/test_adapter.py``.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.adapters.attach import TargetRow
    from ms4_train.adapters.export import Export
    from ms4_train.adapters.presets import PresetMatch
    from ms4_train.adapters.summary import AdapterSummary

INSPECT_EXAMPLES = """
Examples:

  ms4 adapter inspect runs/tiny/lora/adapter

  ms4 adapter inspect ADAPTER --base Mistral-Small-4-119B

  ms4 adapter inspect ADAPTER --json
"""
EXPORT_EXAMPLES = """
Examples:

  ms4 adapter export runs/tiny/lora/adapter runs/tiny/lora/vllm --format vllm

  ms4 adapter export OLD_PEFT_ADAPTER OUT --format peft --base Mistral-Small-4-119B

  ms4 adapter export VLLM_ADAPTER OUT --format peft --base Mistral-Small-4-119B

  vllm serve Mistral-Small-4-119B --enable-lora --max-lora-rank 32 --lora-modules tuned=OUT
"""
PRESETS_EXAMPLES = """
Examples:

  ms4 adapter presets runs/tiny/base

  ms4 adapter presets Mistral-Small-4-119B --rank 32
"""

app = typer.Typer(no_args_is_help=True)


class AdapterForm(StrEnum):
    """Forms that are written."""

    peft = "peft"
    vllm = "vllm"


_Adapter = Annotated[Path, typer.Argument(help="Folder of the adapter: ours, PEFT's or vLLM's.", metavar="ADAPTER", show_default=False)]
_Base = Annotated[
    Path | None,
    typer.Option("--base", help="Folder of the base model; needed for adapters that have no ms4_adapter.json.", metavar="MODEL"),
]


@app.command("inspect", epilog=INSPECT_EXAMPLES)
def inspect(
    adapter: _Adapter,
    base: _Base = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what an adapter changes, with which ranks and how much, which base it belongs to, and what is wrong. Exit code 1 if anything is.

    The norm of B says how far a target was trained; B starts at zero. With --base it is checked against that model, tensor by tensor.
    """
    from dataclasses import asdict

    from rich.console import Console

    from ms4_train.adapters.summary import inspect_adapter

    found = inspect_adapter(adapter, base_folder=base)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _print_summary(found, Console())
    if found.problems:
        raise typer.Exit(1)


@app.command("export", epilog=EXPORT_EXAMPLES)
def export(
    adapter: _Adapter,
    out: Annotated[Path, typer.Argument(help="Folder to make; it must be empty or absent.", metavar="OUT", show_default=False)],
    form: Annotated[AdapterForm, typer.Option("--format", help="Form to write.", show_default=False)],
    base: _Base = None,
) -> None:
    """Write an adapter in PEFT's form of today or in the one that vLLM's executor of this model takes. Both change the model equally.

    vLLM runs q_a_proj and kv_a_proj_with_mqa as one layer: their two pairs become one of twice the rank. The difference is printed.
    """
    from rich.console import Console

    from ms4_train.adapters.export import export_adapter
    from ms4_train.weights.folder import refuse_foreign_content

    refuse_foreign_content(out, None)  # now rather than after the work
    _print_export(export_adapter(adapter, out, form.value, base_folder=base), out, Console())


@app.command("presets", epilog=PRESETS_EXAMPLES)
def presets(
    model: Annotated[Path, typer.Argument(help="Folder of a model in any layout.", metavar="MODEL", show_default=False)],
    rank: Annotated[int, typer.Option(help="Rank to count parameters for.", min=1)] = 16,
) -> None:
    """Say what each value of adapter.preset matches on a model, and how many parameters are then trained.

    Only the model's configuration is read. Targets and presets exclude each other in a run file; a preset is a short way to write targets.
    """
    from rich.console import Console

    from ms4_train.adapters.presets import preset_matches
    from ms4_train.weights.layouts.model_config import read_model_config
    from ms4_train.weights.reading.loading import empty_model

    config = read_model_config(model)
    _print_presets(preset_matches(empty_model(config.text, vision=config.vision), rank=rank), rank, Console())


def _print_presets(found: list[PresetMatch], rank: int, console: Console) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("preset")
    table.add_column("target", overflow="fold")
    for name in ("modules", f"parameters, rank {rank}"):
        table.add_column(name, justify="right")
    shown: dict[tuple[TargetRow, ...], str] = {}
    for match in found:
        if match.problem is not None:
            table.add_row(match.preset, f"cannot be used: {match.problem}", "", "", end_section=True)
            continue
        first = shown.setdefault(match.rows, match.preset)
        rows = match.rows if first == match.preset else ()
        for number, row in enumerate(rows):
            table.add_row("" if number else match.preset, row.target, f"{row.modules:,}", f"{row.parameters:,}")
        name, label = ("", "together") if rows else (match.preset, f"as {first}")
        table.add_row(name, label, f"{sum(row.modules for row in match.rows):,}", f"{match.parameters:,}", end_section=True)
    console.print(table, highlight=False, markup=False)


def _print_summary(found: AdapterSummary, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"Adapter {found.folder}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("written by", f"{found.written_by}, in {found.form}'s form")
    table.add_row("base", f"{found.base or 'not recorded'}{f', {found.fingerprint}' if found.fingerprint else ''}")
    table.add_row("settings", ", ".join(f"{key} {value}" for key, value in found.settings.items() if value))
    table.add_row("tensors", f"{found.tensors:,} ({', '.join(found.types)}), {found.parameters:,} parameters, {found.num_bytes:,} bytes")
    if found.layout:
        table.add_row("stacks", f"layout of {found.layout}")
    if found.whole:
        table.add_row("trained whole", ", ".join(found.whole))
    console.print(table)
    rows = Table()
    rows.add_column("target", overflow="fold")
    for name in ("modules", "rank", "parameters", "norm of B", "B all zero"):
        rows.add_column(name, justify="right")
    for row in found.targets:
        ranks = ", ".join(map(str, row.ranks))
        rows.add_row(
            row.target.replace("model.layers.*.", "").replace("transformer.layers.*.", ""),
            f"{row.modules:,}",
            ranks,
            f"{row.parameters:,}",
            f"{row.norm_b:.4g}",
            str(row.zero_b or ""),
        )
    console.print(rows)
    if not found.problems:
        console.print("nothing is missing or wrong", style="green")
    for problem in found.problems:
        console.print(f"problem: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)


def _print_export(done: Export, out: Path, console: Console) -> None:
    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    if done.read.layout is not None:
        line(f"stacks were stored as {done.read.layout.value} does")
    if done.vllm is None:
        line(f"wrote {out}: PEFT's form, {len(done.read.tensors):,} tensors")
        return
    vllm = done.vllm
    line(f"wrote {out}: vLLM's form, {len(vllm.stored):,} tensors; start vLLM with --enable-lora --max-lora-rank {vllm.rank} or more")
    if vllm.fused:
        line(
            f"{vllm.fused:,} layers fused: largest difference in a value {vllm.max_error:.3g}, "
            f"beside changes of the weights of up to {vllm.max_change:.3g}"
        )
    line(f"scales folded into B: rounded by at most {vllm.fold_error:.2g} of the largest value of a tensor")
    if done.skipped_in_decode:
        line(
            "warning: vLLM folds kv_b_proj of the base into its attention for single tokens when it loads; "
            "compare its answers with ms4 generate before you rely on an adapter of kv_b_proj there, or serve the merged model",
            "yellow",
        )
