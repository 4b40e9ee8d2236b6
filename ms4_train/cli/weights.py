"""``ms4 weights ...``: what a checkpoint holds, the same in another layout, two of them compared, one of them proven.

Exercise it: ``ms4 weights --help`` and ``pytest tests/ms4_train/cli/test_weights.py``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

INSPECT_EXAMPLES = """
Examples:

  ms4 weights inspect runs/tiny/full/model

  ms4 weights inspect Mistral-Small-4-119B --family hf

  ms4 weights inspect Mistral-Small-4-119B --json
"""
CONVERT_EXAMPLES = """
Examples:

  ms4 weights convert runs/tiny/full/model runs/tiny/native --to native

  ms4 weights convert Mistral-Small-4-119B Mistral-Small-4-119B-bf16 --to hf

  ms4 weights convert TUNED OUT --to native-fp8 --scales Mistral-Small-4-119B

  ms4 weights convert SOURCE OUT --to native-fp8 --weight-scales fitted --dry-run
"""
DIFF_EXAMPLES = """
Examples:

  ms4 weights diff runs/tiny/full/model runs/tiny/native

  ms4 weights diff Mistral-Small-4-119B Mistral-Small-4-119B-bf16 --rounded

  ms4 weights diff A B --tolerance 0.01 --top 50

  ms4 weights diff Mistral-Small-4-119B Mistral-Small-4-119B --a hf --b native
"""
VERIFY_EXAMPLES = """
Examples:

  ms4 weights verify Mistral-Small-4-119B

  ms4 weights verify runs/tiny/native --against runs/tiny/full/model

  ms4 weights verify RESULT --against SOURCE --prompts prompts.txt --tolerance 0.01
"""

app = typer.Typer(no_args_is_help=True)


class FamilyOption(StrEnum):
    """Which files of a folder."""

    auto = "auto"
    hf = "hf"
    native = "native"


class TargetLayout(StrEnum):
    """Layouts that are written."""

    hf = "hf"
    native = "native"
    hf_fp8 = "hf-fp8"
    native_fp8 = "native-fp8"


class WeightScales(StrEnum):
    """Where the scales of FP8 weights come from."""

    kept = "kept"
    fitted = "fitted"


class PlainType(StrEnum):
    """Type of weights that are not quantised."""

    bfloat16 = "bfloat16"
    float32 = "float32"


_Folder = Annotated[Path, typer.Argument(help="Folder of a model, in any layout.", metavar="FOLDER", show_default=False)]
_FAMILY_HELP = "Which files, where there are Hugging Face's and Mistral's; auto takes Mistral's."
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("inspect", epilog=INSPECT_EXAMPLES)
def inspect(
    folder: _Folder,
    family: Annotated[FamilyOption, typer.Option(help=_FAMILY_HELP)] = FamilyOption.auto,
    as_json: _Json = False,
) -> None:
    """Say what a checkpoint holds and everything that is missing or wrong. Exit code 1 if anything is.

    Reads configuration, headers and scales; of the weights only a sample for the fingerprint.
    """
    from ms4_train.cli.inspection import inspect_folder, inspection_json, print_inspection

    found = inspect_folder(folder, family.value)
    if as_json:
        typer.echo(inspection_json(found))
    else:
        print_inspection(found, "Model")
    if found.problems:
        raise typer.Exit(1)


@app.command("convert", epilog=CONVERT_EXAMPLES)
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a model, in any layout.", metavar="SOURCE", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must be empty or absent.", metavar="OUT", show_default=False)],
    to: Annotated[TargetLayout, typer.Option(help="Layout to write.", show_default=False)],
    family: Annotated[FamilyOption, typer.Option("--from", help=_FAMILY_HELP)] = FamilyOption.auto,
    scales: Annotated[
        Path | None,
        typer.Option(help="For FP8: a folder or fp8_scales.json with scales; default: beside SOURCE.", show_default=False),
    ] = None,
    weight_scales: Annotated[
        WeightScales, typer.Option(help="kept: the scales found, which clip what outgrew them; fitted: to each matrix.")
    ] = WeightScales.kept,
    dtype: Annotated[
        PlainType | None, typer.Option(help="Type of weights that are not quantised; default: as stored.", show_default=False)
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file: 5GB, 500MB, 5GiB.")] = "5GiB",
    threads: Annotated[int | None, typer.Option(help="Default: one for each core, eight at most.", min=1, show_default=False)] = None,
    skip_sums: Annotated[bool, typer.Option("--skip-sums", help="Do not compare SOURCE with its SHA256SUMS first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and stop.")] = False,
) -> None:
    """Write a checkpoint in another layout, with configuration, tokenizer and SHA256SUMS.

    SOURCE is only read. OUT appears when it is whole; the same command goes on after an interruption.
    """
    from rich.console import Console

    from ms4_train.cli.conversion import parse_size, print_plan, print_report
    from ms4_train.cli.inspection import inspect_folder, print_problems, short_inspection

    max_shard_bytes = parse_size(max_shard_size)
    console = Console()
    stored = None if dtype is None else dtype.value
    if dry_run:
        has_room = print_plan(
            source,
            out,
            to=to.value,
            family=family.value,
            scales=scales,
            weight_scales=weight_scales.value,
            dtype=stored,
            max_shard_bytes=max_shard_bytes,
            console=console,
        )
        raise typer.Exit(0 if has_room else 1)
    from ms4_train.weights.convert import convert as convert_checkpoint

    report = convert_checkpoint(
        source,
        out,
        to=to.value,
        family=family.value,
        scales=scales,
        weight_scales=weight_scales.value,
        dtype=stored,
        max_shard_bytes=max_shard_bytes,
        threads=threads,
        check_sums=not skip_sums,
    )
    print_report(report, console)
    found = inspect_folder(out, "hf" if to.value.startswith("hf") else "native")
    console.print(short_inspection(found), highlight=False, markup=False, soft_wrap=True)
    print_problems(found, console)
    if found.problems:
        raise typer.Exit(1)


@app.command("diff", epilog=DIFF_EXAMPLES)
def diff(
    a: Annotated[Path, typer.Argument(help="Folder of a model; errors are relative to it.", metavar="A", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Folder of another one, in any layout.", metavar="B", show_default=False)],
    tolerance: Annotated[float, typer.Option(help="Relative error (Frobenius) of a matrix that still counts as equal.", min=0)] = 0.0,
    rounded: Annotated[
        bool, typer.Option("--rounded", help="Round both sides to the type of the one that is not quantised, or the narrower one.")
    ] = False,
    top: Annotated[int, typer.Option(help="Show so many of those that differ.", min=1)] = 20,
    everything: Annotated[bool, typer.Option("--all", help="Show every piece, identical ones too.")] = False,
    as_json: _Json = False,
    family_a: Annotated[FamilyOption, typer.Option("--a", help="Which files of A.")] = FamilyOption.auto,
    family_b: Annotated[FamilyOption, typer.Option("--b", help="Which files of B.")] = FamilyOption.auto,
    threads: Annotated[int | None, typer.Option(help="Default: one for each core, eight at most.", min=1, show_default=False)] = None,
) -> None:
    """Compare two checkpoints of any layouts, weight by weight. Exit code 0 if equal within --tolerance, else 1.

    Quantised weights are compared by their values, in fp32, and by codes and scales where both sides have them.
    """
    from rich.console import Console

    from ms4_train.cli.bars import counting_bar
    from ms4_train.cli.difference import difference_json, print_difference
    from ms4_train.weights import open_checkpoint
    from ms4_train.weights.compare.diff import diff as compare

    mine, theirs = open_checkpoint(a, family=family_a.value), open_checkpoint(b, family=family_b.value)
    with counting_bar("comparing") as progress:
        found = compare(mine, theirs, rounded=rounded, threads=threads, progress=progress)
    if as_json:
        typer.echo(difference_json(found, tolerance, everything=everything))
    else:
        console = Console()
        console.print(f"A: {a}, {mine.layout.value}\nB: {b}, {theirs.layout.value}", highlight=False, markup=False, soft_wrap=True)
        print_difference(found, tolerance, top=None if everything else top, console=console)
    if not found.is_within(tolerance):
        raise typer.Exit(1)


@app.command("verify", epilog=VERIFY_EXAMPLES)
def verify(
    folder: _Folder,
    against: Annotated[Path | None, typer.Option(help="Folder that it was made from: compare logits.", show_default=False)] = None,
    prompts: Annotated[str | None, typer.Option(help="Number of built-in ones, or a file with one on each line.", show_default="4")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest error of a block; default: 0, or what the target layout costs.", min=0, show_default=False)
    ] = None,
    family: Annotated[FamilyOption, typer.Option(help=_FAMILY_HELP)] = FamilyOption.auto,
    against_family: Annotated[FamilyOption, typer.Option("--against-family", help="The same for --against.")] = FamilyOption.auto,
    skip_sums: Annotated[bool, typer.Option("--skip-sums", help="Do not compare files with SHA256SUMS.")] = False,
    as_json: _Json = False,
) -> None:
    """Check a checkpoint's structure and sums, and with --against that it computes what its source does.

    Runs the same tokens through both, in fp32, one layer in memory at a time. Exit code 1 if they differ beyond the tolerance; the first
    layer that does is named.
    """
    import json

    from rich.console import Console

    from ms4_train.cli import verification
    from ms4_train.weights import open_checkpoint

    console = Console(quiet=as_json)

    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    result = open_checkpoint(folder, family=family.value)
    size = f"{len(result.stored):,} tensors, {result.num_bytes:,} bytes"
    line(f"structure: {result.layout.value}, {size}; every name, shape, type and scale is right")
    sums = "skipped" if skip_sums else verification.checked_sums(result)
    line(f"sums: {sums}", "yellow" if sums == verification.NO_SUMS else None)
    content = {"folder": str(folder), "layout": result.layout.value, "tensors": len(result.stored), "sums": sums}
    passed = True
    if against is not None:
        source = open_checkpoint(against, family=against_family.value)
        line(f"source: {against}, {source.layout.value}")
        report, what = verification.compare(source, result, prompts, tolerance)
        verification.print_report(report, what, console)
        passed = report.passed
        content |= {"against": str(against), "logits": verification.report_json(report)}
    else:
        line("logits: not compared; --against SOURCE does")
    line("PASS" if passed else "FAIL", "green" if passed else "red")
    if as_json:
        typer.echo(json.dumps(content | {"passed": passed}, indent=2))
    if not passed:
        raise typer.Exit(1)
