"""What a training run leaves: the tuned model as a Hugging Face folder, or its adapter as PEFT files.

Exercise it: ``pytest tests/recipes/ms4_recipes/test_export.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ms4_train.adapters import adapter_tensors, plain_adapter, save_adapter
from ms4_train.parallel import TrainEngine, progress
from ms4_train.weights import open_checkpoint, save_model
from ms4_train.weights.layouts.model_config import read_model_config

if TYPE_CHECKING:
    from ms4_recipes.sft import Plan


def export(plan: Plan, engine: TrainEngine, output_dir: Path | None = None) -> Path:
    """Write the tuned model or adapter; returns its folder. Collective: every rank gathers, the main one writes.

    A whole model takes along what its base has and nobody trained: vision weights, the files beside the weights, FP8 scales. An adapter is
    always one of the untouched base, also where it was taken out of the weights at its start (PiSSA, OLoRA).

    Args:
        plan: of the run.
        engine: holds the weights.
        output_dir: where ``model`` or ``adapter`` is written; default: the run's.

    Raises:
        StorageError: the disk is full, or something else lies in the folder's place.
        WeightsError: the base can no longer be read.
    """
    config, is_main = plan.config, plan.mesh.is_main
    output_dir = output_dir or Path(config.output_dir)
    if plan.adapter is None:
        folder = output_dir / "model"
        pairs = _told(engine.full_parameters([name for name, _ in plan.model.named_parameters()]))
        if is_main:
            base = open_checkpoint(config.model.path)
            save_model(pairs, folder, config=plan.model.config, tokenizer_file=plan.tokenizer.path, base=base)
        else:
            _walk_through(pairs)
        return folder
    folder = output_dir / "adapter"
    tensors = {name: tensor.cpu() for name, tensor in _told(engine.full_parameters(list(adapter_tensors(plan.model))))}
    if is_main:
        section, tensors = plain_adapter(plan.model, plan.adapter, tensors)
        save_adapter(
            tensors,
            folder,
            section=section,
            config=plan.model.config,
            vision=read_model_config(config.model.path).vision,  # the base's, also where the run left it out: names depend on it
            base_path=config.model.path,
            base_fingerprint=plan.base_fingerprint,
        )
    return folder


def _told(pairs: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same pairs; at each the process says that it gets on, for a large model takes longer to write than a rank may be silent."""
    for pair in pairs:
        progress.at("export")
        yield pair


def _walk_through(pairs: Iterator[tuple[str, Tensor]]) -> None:
    """Take part in gathering without keeping anything."""
    for _ in pairs:
        pass
