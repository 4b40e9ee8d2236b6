"""``ms4 model ...``: fresh checkpoints, what a checkpoint holds, adapters merged into their base, derived tokenizers.

Exercise it: ``ms4 model --help`` and ``pytest tests/ms4_train/cli/test_model.py``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

INIT_EXAMPLES = """
Examples:

  ms4 model tokenizer runs/tiny/tekken.json --ranks 512

  ms4 model init configs/models/tiny.yaml runs/tiny/base --tokenizer runs/tiny/tekken.json
"""
INFO_EXAMPLES = """
Examples:

  ms4 model info runs/tiny/full/model

  ms4 model info Mistral-Small-4-119B --json
"""
MERGE_EXAMPLES = """
Examples:

  ms4 model merge runs/tiny/full/model runs/tiny/lora/adapter runs/tiny/merged

  ms4 model merge BASE ADAPTER OUT --dtype bfloat16
"""
TOKENIZER_EXAMPLES = """
Examples:

  ms4 model tokenizer runs/tiny/tekken.json --ranks 512

  ms4 model tokenizer runs/full
"""

app = typer.Typer(no_args_is_help=True)


class Dtype(StrEnum):
    """Type of stored weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command("init", epilog=INIT_EXAMPLES)
def init(
    config: Annotated[Path, typer.Argument(help="Model file, such as configs/models/tiny.yaml.", metavar="CONFIG.yaml")],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must be empty or absent.", metavar="OUT")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.", min=0)] = 0,
    tokenizer: Annotated[Path | None, typer.Option(help="tekken.json to copy into OUT; its size is the model's vocabulary.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the stored weights.")] = Dtype.bfloat16,
) -> None:
    """Write a fresh checkpoint with random weights."""
    import torch

    from ms4_train.weights import init_checkpoint

    init_checkpoint(config, out, seed=seed, tokenizer_file=tokenizer, dtype=getattr(torch, dtype.value))
    _print_info(out, "Wrote")


@app.command("info", epilog=INFO_EXAMPLES)
def info(
    folder: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors files.", metavar="FOLDER")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Check a checkpoint's headers against its configuration and say what it holds."""
    if not as_json:
        _print_info(folder, "Model")
        return
    import json
    from dataclasses import asdict

    from ms4_train.weights.summary import summarise

    typer.echo(json.dumps(asdict(summarise(folder)), indent=2))


@app.command("merge", epilog=MERGE_EXAMPLES)
def merge(
    base: Annotated[Path, typer.Argument(help="Folder of the base model.", metavar="BASE")],
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, ours or PEFT's.", metavar="ADAPTER")],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must be empty or absent.", metavar="OUT")],
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the stored weights; default: that of BASE.")] = None,
) -> None:
    """Fold an adapter into its base model and write the result as an ordinary model."""
    import torch

    from ms4_train.adapters import load_adapter
    from ms4_train.adapters import merge as merge_adapter
    from ms4_train.weights import base_fingerprint, load_model, save_model, scan_checkpoint
    from ms4_train.weights.folder import refuse_foreign_content
    from ms4_train.weights.writer import TOKENIZER_FILE

    refuse_foreign_content(out, None)  # now rather than after minutes of work
    stored = getattr(torch, dtype.value) if dtype else scan_checkpoint(base).dtype
    model = load_model(base, dtype=stored)
    load_adapter(model, adapter, base_fingerprint=base_fingerprint(base))
    merge_adapter(model)
    tokenizer = base / TOKENIZER_FILE
    save_model(model.state_dict(), out, config=model.config, tokenizer_file=tokenizer if tokenizer.is_file() else None, replace=False)
    _print_info(out, "Wrote")


@app.command("tokenizer", epilog=TOKENIZER_EXAMPLES)
def tokenizer(
    out: Annotated[Path, typer.Argument(help="File to write (its name must hold 'tekken'), or a folder for tekken.json.", metavar="OUT")],
    ranks: Annotated[int | None, typer.Option(help="Keep the first N byte-pair ranks (256 or more); default: all of them.")] = None,
) -> None:
    """Derive a version 15 tokenizer from the one inside mistral-common; with --ranks a small one for tiny models."""
    from ms4_train.chat import derive_tokenizer
    from ms4_train.weights.init import tokenizer_size

    path = derive_tokenizer(out, num_ranks=ranks)
    typer.echo(f"{path}: {tokenizer_size(path):,} tokens")


def _print_info(folder: Path, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from ms4_train.weights.summary import summarise

    summary = summarise(folder)
    config = summary.config
    rows = {
        "folder": str(folder),
        "layout": f"{summary.layout}; {summary.files} file{'s' if summary.files > 1 else ''}, {summary.num_bytes:,} bytes",
        "type of weights": summary.dtype,
        "parameters": f"{summary.parameters:,}",
        "active per token": f"{summary.active_parameters:,} ({summary.active_parameters / summary.parameters:.1%})",
        "layers": f"{config.num_hidden_layers} of width {config.hidden_size:,}, {config.num_attention_heads} heads",
        "experts": f"{config.n_routed_experts} of width {config.moe_intermediate_size:,}, {config.num_experts_per_tok} per token"
        f" + {config.n_shared_experts} shared",
        "vocabulary": f"{config.vocab_size:,}" + ("" if summary.has_tokenizer else " (no tekken.json in the folder)"),
        "softmax scale": config.softmax_scale,
        "vision": f"{summary.vision_tensors} tensors, left out by text runs" if summary.vision_tensors else "none",
        "fingerprint": summary.fingerprint,
    }
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
