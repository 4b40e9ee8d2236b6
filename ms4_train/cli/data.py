"""``ms4 data preview|check|arithmetic``: look at training rows before a run.

Exercise it: ``pytest tests/ms4_train/cli/test_data.py``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ms4_train.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.chat import ChatTokenizer
    from ms4_train.config.schema import DataSection, DatasetSource
    from ms4_train.data.row_survey import Survey

app = typer.Typer(no_args_is_help=True)

NO_LIMIT = 1 << 40
SHOWN_FAULTS = 100


class Turns(StrEnum):
    """Which assistant turns carry loss."""

    all = "all"
    last = "last"


class Mode(StrEnum):
    """The two reasoning modes."""

    none = "none"
    high = "high"


_FileOrRun = Annotated[
    Path, typer.Argument(metavar="FILE", help="Rows (.jsonl, .json, .parquet), or a run file (.yaml).", show_default=False)
]
_Tokenizer = Annotated[
    Path | None, typer.Option(help="tekken.json file; a run file names its own.", metavar="TEKKEN.JSON", show_default=False)
]
_Mode = Annotated[Mode | None, typer.Option(help="Mode of rows that do not name one.", show_default="none")]


@app.command(
    epilog="""Examples:

ms4 data preview rows.jsonl

ms4 data preview rows.jsonl --rows 1 --start 42 --no-thinking --turns last

ms4 data preview configs/train/tiny_full.yaml

NO_COLOR=1 ms4 data preview rows.jsonl > preview.txt"""
)
def preview(
    file: _FileOrRun,
    tokenizer: _Tokenizer = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows of each source.")] = 3,
    start: Annotated[int, typer.Option(min=0, help="Rows to pass over first.")] = 0,
    turns: Annotated[Turns | None, typer.Option(help="Which assistant turns carry loss.", show_default="all")] = None,
    thinking: Annotated[
        bool | None, typer.Option("--thinking/--no-thinking", help="Whether thinking carries loss.", show_default="thinking")
    ] = None,
    mode: _Mode = None,
) -> None:
    """Show rows as the model sees them: trained and masked tokens in different colours."""
    import itertools

    from rich.console import Console

    from ms4_train.data.pipeline import RowPipeline
    from ms4_train.data.preview import legend, render_row
    from ms4_train.data.sources import iter_rows

    section, run_tokenizer = _section_of(file, mode)
    changes = {
        key: value
        for key, value in (("train_on_turns", turns and turns.value), ("train_on_thinking", thinking), ("max_length", NO_LIMIT))
        if value is not None
    }
    section = section.model_copy(update=changes)
    loaded = _load_tokenizer(tokenizer or run_tokenizer)
    console = Console(soft_wrap=True)
    colour = console.color_system is not None and not console.no_color
    console.print(legend(colour=colour))
    for source in section.train:
        pipeline = RowPipeline(source, section, loaded)
        shown = list(itertools.islice(iter_rows(source, start=start), rows))
        if not shown:
            raise DataError(f"holds no row number {start + 1}.", file=source.path, fix="check the file, or lower --start.")
        for raw in shown:
            outcome = pipeline.process(raw)
            console.print()
            if outcome.fault is not None:
                console.print(f"{outcome.fault}", markup=False, highlight=False, style="red")
            elif outcome.encoded is not None and outcome.row is not None:
                encoded = outcome.encoded
                share = encoded.num_trained / len(encoded.token_ids)
                head = f"{raw.row_id}: mode {outcome.row.reasoning_effort}, {len(encoded.token_ids):,} tokens, "
                head += f"images: {len(encoded.images)}, " if encoded.images else ""
                console.print(f"{head}{encoded.num_trained:,} trained ({share:.0%})", markup=False, highlight=False)
                console.print(render_row(encoded, loaded, colour=colour))


@app.command(
    epilog="""Examples:

ms4 data check rows.jsonl

ms4 data check rows.parquet --mode high --tokenizer MODEL/tekken.json

ms4 data check configs/train/tiny_full.yaml

ms4 data check rows.jsonl --faults bad.jsonl"""
)
def check(
    file: _FileOrRun,
    tokenizer: _Tokenizer = None,
    mode: _Mode = None,
    faults: Annotated[
        Path | None, typer.Option(help="Also write every bad row's place and fault here, as JSON lines.", show_default=False)
    ] = None,
) -> None:
    """List bad rows with file, line and code, and count the good ones. Exit code 2 if a row is bad.

    Without a tokenizer only the form of rows and the headers of images are checked; with one, or with a run file, their tokens too, and
    every image is decoded.
    """
    from rich.console import Console

    from ms4_train.cli.bars import counting_bar
    from ms4_train.data.preparation import check_rows

    section, run_tokenizer = _section_of(file, mode)
    path = tokenizer or run_tokenizer
    loaded = None if path is None else _load_tokenizer(path)
    if run_tokenizer is None:
        section = section.model_copy(update={"max_length": NO_LIMIT})
    console = Console(soft_wrap=True, highlight=False)
    with counting_bar("rows", console=Console(stderr=True)) as bar:
        surveys = [
            check_rows(source, section, loaded, progress=lambda path, done: bar(done, None, f"{path}: {done:,} rows"))
            for source in [*section.train, *section.validation]
        ]
    for result in surveys:
        for fault in result.faults[:SHOWN_FAULTS]:
            console.print(f"{fault} Fix: {fault.fix}" if fault.fix else str(fault), markup=False)
        if len(result.faults) > SHOWN_FAULTS:
            console.print(f"... and {result.fault_counts.total() - SHOWN_FAULTS:,} more in {result.sources[0].path}", markup=False)
    for result in surveys:
        _print_counts(result, console, has_tokens=loaded is not None)
    if faults is not None:
        _write_faults(surveys, faults)
        console.print(f"wrote {faults}", markup=False)
    if any(result.faults for result in surveys):
        raise typer.Exit(2)
    for result in surveys:
        if not result.rows_read:
            raise DataError("holds no rows.", file=result.sources[0].path, fix='write one JSON object per line: {"messages": [...]}.')


@app.command(
    epilog="""Examples:

ms4 data arithmetic rows.jsonl --kind digits --rows 20000

ms4 data arithmetic second.jsonl --kind letters --rows 4000 --seed 1 --direct-share 0.3"""
)
def arithmetic(
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="File to write.", show_default=False)],
    kind: Annotated[str, typer.Option(help="Kind of problem; a wrong name lists the kinds.")] = "digits",
    rows: Annotated[int, typer.Option(min=1, max=1_000_000, help="Rows to write.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other problems.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Operators in a problem.", show_default="the task's own")] = None,
    direct_share: Annotated[float, typer.Option(min=0, max=1, help="Share of rows in mode none, answered without thinking.")] = 0.5,
) -> None:
    """Write training rows of generated arithmetic problems; none of them is among the held-out problems of the evaluation."""
    from ms4_evals.tasks.arithmetic import DEFAULT_STEPS, write_training_rows

    path = write_training_rows(kind, rows, seed, out, steps=DEFAULT_STEPS if steps is None else steps, direct_share=direct_share)
    typer.echo(f"wrote {rows:,} rows to {path}")


def _section_of(file: Path, mode: Mode | None) -> tuple[DataSection, Path | None]:
    """The data section of a run file with its tokenizer, or one made for a file of rows."""
    from ms4_train.config import load_run
    from ms4_train.config.schema import DataSection, DatasetSource, SftRun

    if file.suffix.lower() in (".yaml", ".yml"):
        run = load_run(file)
        if not isinstance(run, SftRun):
            raise DataError("is a run file without training rows.", file=file, fix="give a run file with `recipe: sft`, or a file of rows.")
        tokenizer = Path(run.model.tokenizer) if run.model.tokenizer else Path(run.model.path) / "tekken.json"
        section = run.data
        if mode is not None:
            section = section.model_copy(update={"train": [_with_mode(source, mode) for source in section.train]})
        return section, tokenizer
    source = DatasetSource(path=str(file), reasoning_effort=None if mode is None else mode.value)
    return DataSection(train=[source]), None


def _with_mode(source: DatasetSource, mode: Mode) -> DatasetSource:
    return source.model_copy(update={"reasoning_effort": mode.value})


def _load_tokenizer(path: Path | None) -> ChatTokenizer:
    import tempfile

    from ms4_train.chat import ChatTokenizer, derive_tokenizer

    if path is not None:
        return ChatTokenizer.from_file(path)
    # The release's vocabulary, as mistral-common ships it: right for every Mistral Small 4.
    with tempfile.TemporaryDirectory(prefix="ms4-") as folder:
        return ChatTokenizer.from_file(derive_tokenizer(Path(folder) / "tekken.json"))


def _print_counts(result: Survey, console: Console, *, has_tokens: bool) -> None:
    for counts in result.sources:
        parts = [
            f"{counts.rows_read:,} rows read",
            f"{counts.rows_kept:,} good",
            f"{counts.rows_bad:,} bad",
            f"{counts.rows_high:,} in mode high",
        ]
        if has_tokens:
            parts += [f"{counts.rows_overlong:,} overlong", f"longest {counts.longest:,} tokens", f"{counts.tokens:,} tokens"]
            parts.append(f"{result.trained_fraction:.1%} of them trained")
        console.print(f"{counts.path}: {', '.join(parts)}", markup=False)
        for line in counts.image_lines():
            console.print(f"{counts.path}: {line}", markup=False)
        if counts.rows_spelled_tags:
            console.print(
                f"{counts.path}: warning: rows that spell a control tag such as [THINK] as ordinary text: {counts.rows_spelled_tags:,}",
                markup=False,
            )
    for code, count in sorted(result.fault_counts.items()):
        console.print(f"  {code}: {count:,}", markup=False)


def _write_faults(surveys: list[Survey], path: Path) -> None:
    from ms4_train.data.row_survey import Survey

    merged = Survey()
    for result in surveys:
        merged.faults += result.faults
    merged.write_faults(path)
