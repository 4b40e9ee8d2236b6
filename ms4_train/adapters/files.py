"""Adapter folders: ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT writes and reads them, and ``ms4_adapter.json``.

The last one records the base model the adapter was trained on, so that it is refused on another, and the SHA-256 of the tensors' file, so
that a changed file is refused. A folder that PEFT wrote has none and is checked as ``stored`` says.
Exercise it: ``pytest tests/ms4_train/adapters/test_files.py``; the exchange with PEFT: ``test_files_peft.py``, ``test_files_exchange.py``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ms4_train.adapters.attach import adapter_names, adapter_parameters, attach, refuse_second
from ms4_train.adapters.names import DEFAULT_ADAPTER, STACKS_OF, as_only_adapter
from ms4_train.adapters.peft_format import is_vision_name, to_peft
from ms4_train.adapters.peft_settings import peft_settings
from ms4_train.adapters.stored import BASE_FILE, CONFIG_FILE, WEIGHTS_FILE, check_sum, open_adapter, read_adapter
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.model import Mistral4Experts, TextConfig, VisionConfig
from ms4_train.weights.checksums import file_sha256
from ms4_train.weights.folder import whole_folder
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.reading.loading import first_expert
from ms4_train.weights.reading.shares import assign

OWN_FILES = (CONFIG_FILE, WEIGHTS_FILE, BASE_FILE)


def save_adapter(
    tensors: Mapping[str, Tensor],
    folder: str | Path,
    *,
    section: AdapterSection,
    config: TextConfig,
    vision: VisionConfig | None = None,
    base_path: str | Path,
    base_fingerprint: str,
    replace: bool = True,
) -> None:
    """Write an adapter folder that PEFT loads, whole or not at all.

    Args:
        tensors: full tensors under the names of ``adapter_tensors``.
        folder: where to; made, with its parents.
        section: what the adapter was attached with.
        config: of the base model.
        vision: of its vision tower; with one, tensors are named as in transformers' multimodal class.
        base_path: the base model as the user named it; PEFT records it.
        base_fingerprint: of the base model.
        replace: whether an earlier adapter there may be replaced; other content never is.

    Raises:
        AdapterError: there is nothing to write, a name is not an adapter parameter's, or vision tensors came without ``vision``.
        StorageError: the disk is full, or ``folder`` holds other files.
    """
    if not tensors:
        raise AdapterError("there are no adapter tensors to write.", file=folder)
    if section.changes_base:
        raise AdapterError("the adapter belongs to a base that its start has changed.", file=folder, fix="save what plain_adapter returns.")
    for name in tensors:
        if vision is None and is_vision_name(name):
            raise AdapterError("belongs to a vision tower, but no configuration of one was given.", key=name, fix="pass vision.")
    stored = {name: tensor.detach().to("cpu") for name, tensor in to_peft(tensors, whole_model=vision is not None).items()}
    settings = peft_settings(section, tensors, ModelConfig(config, vision), base_path=str(base_path))
    record = {"base_path": str(base_path), "base_fingerprint": base_fingerprint, "base": config.to_dict()}
    if vision is not None:
        record["base_vision"] = dataclasses.asdict(vision)
    write_folder(folder, stored, settings, record, replace=replace)


def write_folder(
    folder: str | Path, stored: Mapping[str, Tensor], settings: Mapping[str, Any], record: Mapping[str, Any] | None, *, replace: bool
) -> None:
    """Write the three files, whole or not at all.

    Args:
        folder: where to.
        stored: tensors by their names in the file.
        settings: content of ``adapter_config.json``.
        record: content of ``ms4_adapter.json``, without format and sum; None writes none.
        replace: as for ``save_adapter``.

    Raises:
        StorageError: the disk is full, or ``folder`` holds other files.
    """
    needed = sum(tensor.nbytes for tensor in stored.values())
    with whole_folder(Path(folder), needed_bytes=needed, replaceable=OWN_FILES if replace else None) as temporary:
        save_file(dict(stored), temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        _write_json(temporary / CONFIG_FILE, settings)
        if record is not None:
            _write_json(temporary / BASE_FILE, {"format": 1, **record, "weights_sha256": file_sha256(temporary / WEIGHTS_FILE)})


def load_adapter(
    model: nn.Module, folder: str | Path, *, trainable: bool = False, base_fingerprint: str | None, name: str = DEFAULT_ADAPTER
) -> AdapterSection:
    """Attach the adapter of a folder, ours or PEFT's, and fill it; everything else is frozen. It acts alone.

    Args:
        model: the base model; it may carry adapters of other names.
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        trainable: whether the adapter's parameters are to be trained on.
        base_fingerprint: of ``model``; None skips the comparison with the recorded one.
        name: of the adapter in the model.

    Returns:
        The section that describes the adapter.

    Raises:
        AdapterError: the adapter belongs to another model, uses what is not computed here, or a tensor is missing, unexpected or damaged.
            The model is unchanged.
        UntrustedInputError: a file is missing, cut off or damaged.
    """
    if name in adapter_names(model):
        refuse_second(model)
    found = open_adapter(folder)
    read = read_adapter(model, found, base_fingerprint=base_fingerprint)
    check_sum(found)
    try:
        attach(model, read.section, name=name)
    except AdapterError as error:  # what training accepts, this model's state or types may not
        raise AdapterError(error.message, file=found.folder / CONFIG_FILE, key=error.key, fix=error.fix) from None
    _fill(adapter_parameters(model, name), read.tensors, model)
    if not trainable:
        model.requires_grad_(False)
    return read.section


@torch.no_grad()
def _fill(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy every tensor into its parameter; of stacks the experts that the model holds."""
    for name, parameter in parameters.items():
        value = tensors[as_only_adapter(name)]
        owner, found, _ = name.partition(STACKS_OF)  # not ".lora.": an adapter may be called lora
        if found:
            module = model.get_submodule(f"{owner}.mlp.experts")
            assert isinstance(module, Mistral4Experts)
            value = value[first_expert(module) :][: module.num_local_experts]
        assign(parameter, value)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=sorted) + "\n", encoding="utf-8")
