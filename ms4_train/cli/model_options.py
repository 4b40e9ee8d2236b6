"""The options of the commands that use a model, and the tokenizer, limit and engine that they name.

Exercise it: ``pytest tests/ms4_train/cli/test_model_options.py``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ms4_train.errors import AdapterError, WeightsError

if TYPE_CHECKING:
    from ms4_train.chat import ChatTokenizer
    from ms4_train.inference import Engine
    from ms4_train.model import Mistral4ForCausalLM
    from ms4_train.parallel import Mesh

DEFAULT_MAX_TOKENS = 2048


class Mode(StrEnum):
    """The two reasoning modes."""

    none = "none"
    high = "high"


class Dtype(StrEnum):
    """Type of parameters and activations."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


ModelArgument = Annotated[Path, typer.Argument(help="Model folder, in any public layout, with tekken.json.", show_default=False)]
ModeOption = Annotated[Mode, typer.Option(help="Reasoning mode: none answers directly, high thinks first.")]
TemperatureOption = Annotated[
    float | None, typer.Option(help="0 takes the most likely token. Default: 0 in mode none, 0.7 in mode high.", show_default=False)
]
TopPOption = Annotated[float, typer.Option(help="Sample from the likeliest tokens that make up this probability.")]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        help=f"Most tokens of the answer, thinking included. Default: {DEFAULT_MAX_TOKENS}, or what fits the model.", show_default=False
    ),
]
ThinkingBudgetOption = Annotated[
    int | None, typer.Option(help="Most tokens of a thought; it is then closed. Default: no limit.", min=0, show_default=False)
]
SeedOption = Annotated[int, typer.Option(help="Seed of the sampled answer.")]
AdapterOption = Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter to load on top.", show_default=False)]
SystemOption = Annotated[
    str | None,
    typer.Option(help="System prompt, or a .txt or .md file; {name}, {today} and {yesterday} are filled in.", show_default=False),
]
TokenizerOption = Annotated[Path | None, typer.Option(help="tekken.json file; default: the one in MODEL.", show_default=False)]
DtypeOption = Annotated[Dtype, typer.Option(help="Type of parameters; auto is float32 on a CPU and bfloat16 on a GPU.")]
KeepQuantisedOption = Annotated[
    bool,
    typer.Option("--keep-quantised", help="Keep FP8 or NVFP4 weights as codes and scales: less memory, slower. Default: dequantise them."),
]


def open_model(model: Path, adapter: Path | None, tokenizer: Path | None) -> tuple[ChatTokenizer, int]:
    """The tokenizer, and the model's limit in tokens; says what is wrong before weights are read, which may take minutes.

    Raises:
        WeightsError: the model is no folder, or its configuration cannot be used.
        AdapterError: the adapter is no folder.
        TokenizerError, UntrustedInputError: the tokenizer is missing, or not the model's.
    """
    from ms4_train.chat import ChatTokenizer
    from ms4_train.weights import read_config

    if not model.is_dir():
        raise WeightsError("is not a folder.", file=model, fix="give a folder with config.json or params.json, and safetensors files.")
    if adapter is not None and not adapter.is_dir():
        raise AdapterError("is not a folder.", file=adapter, fix="give a folder with adapter_config.json.")
    config = read_config(model)
    chat_tokenizer = ChatTokenizer.of_model(model, tokenizer)
    chat_tokenizer.check_model(config.vocab_size)
    return chat_tokenizer, config.max_position_embeddings


def load_engine(
    model: Path,
    adapter: Path | None,
    chat_tokenizer: ChatTokenizer,
    dtype: Dtype,
    *,
    keep_quantised: bool = False,
    max_batch_size: int = 1,
    max_context: int | None = None,
) -> Engine:
    """The engine over the model and its adapter, on the GPU where there is one.

    Args:
        model, adapter, dtype, keep_quantised: as of ``load_network``.
        chat_tokenizer: of the model.
        max_batch_size: most answers computed at once.
        max_context: most tokens of prompt and answer; None: the model's limit.

    Raises:
        MS4Error: the weights or the adapter cannot be used.
    """
    from ms4_train.inference import Engine

    network = load_network(model, adapter, dtype, keep_quantised=keep_quantised)
    limit = network.config.max_position_embeddings
    return Engine(network, chat_tokenizer, max_batch_size=max_batch_size, max_context=max_context or limit)


def load_network(
    model: Path, adapter: Path | None, dtype: Dtype, *, keep_quantised: bool = False, mesh: Mesh | None = None
) -> Mistral4ForCausalLM:
    """The model and its adapter, on the GPU where there is one. Says on standard error how weights are held where they are quantised.

    Args:
        model, adapter: folders.
        dtype: of parameters and activations.
        keep_quantised: whether FP8 or NVFP4 weights stay as they are stored.
        mesh: of ranks that share out the experts: each reads its own, and rank 0 speaks. None: this process alone.

    Raises:
        MS4Error: the weights or the adapter cannot be used.
    """
    import torch
    from rich.console import Console

    from ms4_train.parallel import Mesh, progress, shard_experts
    from ms4_train.weights import base_fingerprint, load_model, open_checkpoint, read_config
    from ms4_train.weights.reading.base_weights import base_weights_line
    from ms4_train.weights.reading.loading_bar import loading_bar

    mesh = mesh or Mesh(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    device = mesh.device.type
    name = dtype.value if dtype is not Dtype.auto else ("bfloat16" if device == "cuda" else "float32")
    notes = Console(stderr=True, quiet=not mesh.is_main)
    own = mesh.expert_range(read_config(model).n_routed_experts) if mesh.expert_parallel_size > 1 else None
    with notes.status(f"loading {model.name} ({name}, {device})"):
        with loading_bar(model.name, console=notes) as shown:

            def told(done: int, total: int) -> None:
                progress.loaded(done, total)
                shown(done, total)

            network = load_model(model, dtype=getattr(torch, name), dequantise=not keep_quantised, expert_range=own, progress=told)
        line = base_weights_line(open_checkpoint(model).layout, network)
        if adapter is not None:
            from ms4_train.adapters import load_adapter

            load_adapter(network, adapter, base_fingerprint=base_fingerprint(model))
        shard_experts(network, mesh)
        network.to(mesh.device)
    if line is not None:
        notes.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
    return network.eval()
