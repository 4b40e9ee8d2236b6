"""A model or adapter out of run state, without training: the files that the run itself would write at that step.

The state holds the trained weights in fp32 and the run's whole configuration; the rest comes from the base model. Weights go through
memory one parameter at a time, so a model larger than memory can be written. Exercise it: ``ms4 checkpoint export CHECKPOINT OUT``, or
``pytest tests/recipes/ms4_recipes/test_export_checkpoint.py``.

Not covered: PiSSA and OLoRA starts are computed anew from the base; another machine may round them in another way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from ms4_recipes.prepare_model import go_on_with_adapter
from ms4_recipes.sft import file_sha256
from ms4_train.adapters import adapter_tensors, attach, plain_adapter, save_adapter
from ms4_train.adapters.targets import find_targets
from ms4_train.chat import ChatTokenizer
from ms4_train.checkpoint import SavedRun, seed_everything
from ms4_train.checkpoint.manifest import verify_folder
from ms4_train.config.schema import AdapterSection, SftRun
from ms4_train.errors import CheckpointError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.storage import storage_errors
from ms4_train.weights import Checkpoint, base_fingerprint, open_checkpoint, save_model
from ms4_train.weights.layouts.model_config import read_model_config
from ms4_train.weights.reading.loading import empty_model, put_parameter

Progress = Callable[[int, int], None]
"""Called with (parameters done, in all)."""


@dataclass(frozen=True)
class Exported:
    """What was written, and the step it is of."""

    kind: Literal["model", "adapter"]
    step: int


def export_checkpoint(folder: Path, out: Path, *, base: Path | None = None, progress: Progress = lambda done, total: None) -> Exported:
    """Write the model or adapter that a run had when it saved.

    Args:
        folder: of the checkpoint; all its files are verified first.
        out: folder to make; it must be empty or absent.
        base: the base model, where it is not where the run had it; it must be the same by its fingerprint.
        progress: told how far the writing is.

    Raises:
        CheckpointError: the checkpoint is damaged, holds no configuration, or was trained on another base.
        WeightsError, UntrustedInputError: the base cannot be read.
        StorageError: the disk is full, or ``out`` holds other files.
    """
    verify_folder(folder)
    saved = SavedRun.open(folder)
    config = _configuration(saved, base)
    path = Path(config.model.path)
    if not path.is_dir():
        if base is not None:
            raise CheckpointError("there is no such folder.", file=path, key="--base", fix="name the folder of the base model.")
        raise CheckpointError("the base model is not there any more.", file=path, key="model.path", fix="name its folder with --base.")
    _require(saved, "path", base_fingerprint(path), path)
    with storage_errors(out):
        if out.is_dir():
            if any(out.iterdir()):
                raise CheckpointError("holds files already.", file=out, fix="name an empty folder, or one that is not there yet.")
            out.rmdir()
    if config.adapter is None:
        _export_model(saved, config, out, progress)
        return Exported("model", saved.step)
    _export_adapter(saved, config, config.adapter, out, progress)
    return Exported("adapter", saved.step)


def _configuration(saved: SavedRun, base: Path | None) -> SftRun:
    """The run's configuration, with the base model where it is now."""
    try:
        config = SftRun.model_validate(saved.state["config"])
    except (KeyError, ValidationError) as error:
        what = "it holds no configuration" if isinstance(error, KeyError) else "the configuration of its run is not one of this version"
        fix = "export with the version of ms4-train that wrote it."
        raise CheckpointError(f"{what}.", file=saved.folder, key="config", fix=fix) from error
    if base is None:
        return config
    moved: dict[str, Any] = {"path": str(base)}
    if config.model.tokenizer is not None and not Path(config.model.tokenizer).exists():
        moved["tokenizer"] = None
    return config.model_copy(update={"model": config.model.model_copy(update=moved)})


def _require(saved: SavedRun, key: str, found: str, file: Path) -> None:
    """Refuse what is not what the run was trained with."""
    recorded = saved.state["identity"]["locked"]["model"][key]
    if recorded != found:
        what = "base model" if key == "path" else "tokenizer"
        raise CheckpointError(
            f"it is not the {what} that the run was trained with: it has the identity {found}, the run's had {recorded}.",
            file=file,
            fix=f"name the folder of the right {what} with --base.",
        )


def _weight(saved: SavedRun, name: str, dtype: torch.dtype) -> Tensor:
    """A trained parameter as the run computed with it."""
    parameter = saved.parameters[name]
    values = saved.read(name, 0, math.prod(parameter.shape), kinds=("weight",))["weight"]
    return values.view(parameter.shape).to(dtype)


def _export_model(saved: SavedRun, config: SftRun, out: Path, progress: Progress) -> None:
    tokenizer = ChatTokenizer.of_model(config.model.path, config.model.tokenizer)
    _require(saved, "tokenizer", file_sha256(tokenizer.path), tokenizer.path)
    source = open_checkpoint(config.model.path, softmax_scale=config.model.softmax_scale)
    text, vision = source.config.text, source.config.vision if config.model.vision == "auto" else None
    names = [name for name, _ in empty_model(text, vision=vision).named_parameters()]
    if unknown := sorted(set(saved.parameters) - set(names)):
        raise CheckpointError(f"it holds {unknown[0]}, which is not a parameter of the base model.", file=saved.folder)

    def pairs() -> Iterator[tuple[str, Tensor]]:
        for done, name in enumerate(names):
            progress(done, len(names))
            dtype = getattr(torch, config.model.dtype)
            yield name, _weight(saved, name, dtype) if name in saved.parameters else _of_base(source, name, dtype)

    save_model(pairs(), out, config=text, tokenizer_file=tokenizer.path, base=open_checkpoint(config.model.path), replace=False)
    source.close()


def _of_base(source: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    """A weight that the run did not train, in the run's type."""
    piece = source.pieces().get(name)
    if piece is None:
        raise CheckpointError("the run trained it, but the checkpoint does not hold it.", key=name)
    tensor = torch.empty(piece.shape, dtype=dtype)
    source.read_into(piece, tensor)
    return tensor


def _export_adapter(saved: SavedRun, config: SftRun, section: AdapterSection, out: Path, progress: Progress) -> None:
    model, section = _adapted_model(config, section)
    tensors: dict[str, Tensor] = {}
    names = adapter_tensors(model)
    if set(names) != set(saved.parameters):
        odd = sorted(set(names) ^ set(saved.parameters))
        raise CheckpointError(f"its parameters are not those of the run's adapter: {odd[0]}.", file=saved.folder)
    for done, (name, like) in enumerate(names.items()):
        progress(done, len(names))
        tensors[name] = _weight(saved, name, like.dtype)
    section, tensors = plain_adapter(model, section, tensors)
    save_adapter(
        tensors,
        out,
        section=section,
        config=model.config,
        vision=read_model_config(config.model.path).vision,
        base_path=config.model.path,
        base_fingerprint=saved.state["identity"]["locked"]["model"]["path"],
        replace=False,
    )


def _adapted_model(config: SftRun, section: AdapterSection) -> tuple[Mistral4ForCausalLM, AdapterSection]:
    """The run's model with its adapter, without memory for weights, but for those that the adapter's start was taken out of."""
    source = open_checkpoint(config.model.path, softmax_scale=config.model.softmax_scale)
    dtype = getattr(torch, config.model.dtype)
    model = empty_model(source.config.text, vision=source.config.vision if config.model.vision == "auto" else None).to(dtype)
    seed_everything(config.seed, rank=0)  # as the run did: starts are drawn from it
    if section.init_from is not None:
        # The recorded section has every key, the user's file had the few that agree with the adapter: it decides.
        return model, go_on_with_adapter(model, AdapterSection(init_from=section.init_from), base_fingerprint(config.model.path))
    if section.changes_base:
        targets = find_targets(model, section.target_modules, section.target_parameters, exclude_modules=section.exclude_modules)
        for name in targets.module_names:
            put_parameter(model, f"{name}.weight", _of_base(source, f"{name}.weight", dtype))
    attach(model, section)
    source.close()
    return model, section
