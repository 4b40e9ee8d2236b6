"""``ms4 model ...``: fresh checkpoints, text models given eyes, adapters merged into their base, derived tokenizers.

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

  ms4 model init configs/models/tiny-vision.yaml runs/seeing/base --tokenizer runs/tiny/tekken.json
"""
ADD_VISION_EXAMPLES = """
Examples:

  ms4 model add-vision runs/tiny/full/model runs/seeing/base --vision configs/models/tiny-vision.yaml

  ms4 model add-vision BASE OUT --vision configs/models/tiny-vision.yaml --seed 7
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
    """Write a fresh checkpoint with random weights, multimodal where CONFIG.yaml has a vision section."""
    import torch

    from ms4_train.cli.inspection import inspect_folder, print_inspection
    from ms4_train.weights import init_checkpoint

    init_checkpoint(config, out, seed=seed, tokenizer_file=tokenizer, dtype=getattr(torch, dtype.value))
    print_inspection(inspect_folder(out), "Wrote")


@app.command("add-vision", epilog=ADD_VISION_EXAMPLES)
def add_vision(
    base: Annotated[Path, typer.Argument(help="Folder of a text model, in any layout.", metavar="BASE")],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must be empty or absent.", metavar="OUT")],
    vision: Annotated[Path, typer.Option(help="Model file with a vision section, such as configs/models/tiny-vision.yaml.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.", min=0)] = 0,
) -> None:
    """Put a fresh vision tower and projector before a text model, for a training that teaches it to see.

    The text network keeps its values, so adapters of BASE fit OUT too. Nothing but the vision section of the model file is used.
    """
    from ms4_train.cli.inspection import inspect_folder, print_inspection
    from ms4_train.weights.add_vision import add_vision as write
    from ms4_train.weights.folder import refuse_foreign_content

    refuse_foreign_content(out, None)  # now rather than after minutes of work
    write(base, out, vision_yaml=vision, seed=seed)
    print_inspection(inspect_folder(out), "Wrote")


@app.command("merge", epilog=MERGE_EXAMPLES)
def merge(
    base: Annotated[Path, typer.Argument(help="Folder of the base model.", metavar="BASE")],
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter, ours or PEFT's.", metavar="ADAPTER")],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must be empty or absent.", metavar="OUT")],
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the stored weights; default: that of BASE.")] = None,
) -> None:
    """Fold an adapter into its base model and write the result as an ordinary model in Hugging Face's layout.

    BASE may be in any layout; FP8 and NVFP4 weights are dequantised. Tokenizer and processor files go along unchanged, and so do vision
    weights that the adapter does not touch.
    """
    import torch

    from ms4_train.adapters import load_adapter
    from ms4_train.adapters import merge as merge_adapter
    from ms4_train.cli.inspection import inspect_folder, print_inspection
    from ms4_train.weights import load_model, open_checkpoint, save_model
    from ms4_train.weights.folder import refuse_foreign_content
    from ms4_train.weights.reading.base_weights import base_weights_line
    from ms4_train.weights.reading.fingerprint import whole_fingerprint

    refuse_foreign_content(out, None)  # now rather than after minutes of work
    checkpoint = open_checkpoint(base)
    model = load_model(base, dtype=getattr(torch, dtype.value) if dtype else checkpoint.dtype)
    line = base_weights_line(checkpoint.layout, model)
    if line is not None:
        typer.echo(line)
    load_adapter(model, adapter, base_fingerprint=whole_fingerprint(checkpoint))
    typer.echo(merge_adapter(model).line())
    save_model(model.state_dict(), out, config=model.config, base=checkpoint, replace=False)
    print_inspection(inspect_folder(out), "Wrote")


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
