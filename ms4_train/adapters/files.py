"""Adapter folders: ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT writes and reads them, and ``ms4_adapter.json``.

The last one records the base model the adapter was trained on, so that it is refused on another. A folder that PEFT wrote has none and is
checked by names and shapes only. Exercise it: ``pytest tests/ms4_train/adapters/test_files.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ms4_train.adapters.attach import adapter_parameters, attach, detach, peft_config, refuse_second
from ms4_train.adapters.peft_config import section_from_peft
from ms4_train.adapters.peft_format import from_peft, stored_name, to_peft
from ms4_train.adapters.targets import find_targets
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError, UntrustedInputError
from ms4_train.model import Mistral4Experts, TextConfig
from ms4_train.untrusted import TensorInfo, parse_json, read_bytes, read_safetensors_header
from ms4_train.weights.folder import whole_folder
from ms4_train.weights.layouts.names import and_more, nearest
from ms4_train.weights.reading.loading import first_expert

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "ms4_adapter.json"
OWN_FILES = (CONFIG_FILE, WEIGHTS_FILE, BASE_FILE)
MAX_CONFIG_BYTES = 4 << 20
_READABLE = ("F32", "BF16", "F16")


def save_adapter(
    tensors: Mapping[str, Tensor],
    folder: str | Path,
    *,
    section: AdapterSection,
    config: TextConfig,
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
        base_path: the base model as the user named it; PEFT records it.
        base_fingerprint: of the base model.
        replace: whether an earlier adapter there may be replaced; other content never is.

    Raises:
        AdapterError: there is nothing to write, or a name is not an adapter parameter's.
        StorageError: the disk is full, or ``folder`` holds other files.
    """
    if not tensors:
        raise AdapterError("there are no adapter tensors to write.", file=folder)
    stored = {name: tensor.detach().to("cpu") for name, tensor in to_peft(tensors).items()}
    needed = sum(tensor.nbytes for tensor in stored.values())
    settings = peft_config(section, with_stacks=True, base_path=str(base_path)).to_dict() | {"inference_mode": True}
    base = {"format": 1, "base_path": str(base_path), "base_fingerprint": base_fingerprint, "base": config.to_dict()}
    with whole_folder(Path(folder), needed_bytes=needed, replaceable=OWN_FILES if replace else None) as temporary:
        save_file(stored, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        _write_json(temporary / CONFIG_FILE, settings)
        _write_json(temporary / BASE_FILE, base)


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = False, base_fingerprint: str | None) -> AdapterSection:
    """Attach the adapter of a folder, ours or PEFT's, and fill it; everything else is frozen.

    Args:
        model: the base model, without an adapter.
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        trainable: whether the adapter's parameters are to be trained on.
        base_fingerprint: of ``model``; None skips the comparison with the recorded one.

    Returns:
        The section that describes the adapter.

    Raises:
        AdapterError: the adapter belongs to another model, uses what is not computed here, or a tensor is missing, unexpected or misshapen.
        UntrustedInputError: a file is missing, cut off or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AdapterError("there is no such folder.", file=folder, fix="check the path; relative paths start at the current folder.")
    refuse_second(model)
    _check_base(folder / BASE_FILE, base_fingerprint)
    settings = _read_object(folder / CONFIG_FILE)
    file = folder / WEIGHTS_FILE
    header = read_safetensors_header(file)
    for name, info in header.items():
        if info.dtype not in _READABLE:
            raise AdapterError(f"has type {info.dtype}, which is not read.", file=file, key=name, fix="save the adapter in F32 or BF16.")
    section = section_from_peft(settings, header, model, file=folder / CONFIG_FILE)
    _check_rank(header, section.r, _num_experts(model), file)
    stacks = find_targets(model, section.target_modules, section.target_parameters).stack_names
    try:
        tensors = from_peft(_read_all(file), stacks=stacks, num_experts=_num_experts(model))
        attach(model, section)
        _fill(model, tensors, stacks=stacks)
    except AdapterError as error:
        detach(model)
        raise AdapterError(error.message, file=file, key=error.key, fix=error.fix) from None
    if not trainable:
        model.requires_grad_(False)
    return section


def _check_base(file: Path, fingerprint: str | None) -> None:
    if not file.exists() or fingerprint is None:
        return
    recorded = _read_object(file)
    if recorded.get("base_fingerprint") != fingerprint:
        path = recorded.get("base_path")
        raise AdapterError(
            "the adapter was trained on another model" + (f" ({path})." if isinstance(path, str) else "."),
            file=file,
            key="base_fingerprint",
            fix="set model.path to the model it was trained on.",
        )


def _check_rank(header: Mapping[str, TensorInfo], rank: int, num_experts: int, file: Path) -> None:
    """Compare the rank with the tensors before parameters are made: a damaged configuration could ask for any amount of memory."""
    for name, info in header.items():
        if name.endswith(".lora_A.weight") and info.shape and info.shape[0] not in (rank, rank * num_experts):
            raise AdapterError(
                f"has shape {list(info.shape)}, which does not fit rank {rank} of {CONFIG_FILE} and {num_experts} experts.",
                file=file,
                key=name,
                fix="load the adapter on the model it was trained on.",
            )


def _read_object(file: Path) -> dict[str, Any]:
    content = parse_json(read_bytes(file, max_bytes=MAX_CONFIG_BYTES), file=file)
    if not isinstance(content, dict):
        raise AdapterError("must hold one JSON object.", file=file, fix="copy the file again.")
    return content


def _read_all(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise UntrustedInputError(f"cannot be read ({error}).", file=file, fix="copy the file again.") from error


def _num_experts(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    assert isinstance(config, TextConfig)
    return config.n_routed_experts


@torch.no_grad()
def _fill(model: nn.Module, tensors: Mapping[str, Tensor], *, stacks: set[tuple[str, str]]) -> None:
    """Copy every tensor into its parameter; all must be there, in shape, and none left over."""
    parameters = adapter_parameters(model)
    missing = [name for name in parameters if name not in tensors]
    unexpected = [name for name in tensors if name not in parameters]
    if missing:
        raise AdapterError(
            f"the tensor is missing{and_more(missing)}.",
            key=stored_name(missing[0], stacks),
            fix="use the whole adapter; adapter_config.json must describe its tensors.",
        )
    if unexpected:
        hint = nearest(unexpected[0], parameters)
        raise AdapterError(
            f"is not a tensor of this adapter on this model{and_more(unexpected)}."
            + (f" Nearest names: {', '.join(hint)}." if hint else ""),
            key=unexpected[0],
            fix="load the adapter on the model it was trained on.",
        )
    for name, parameter in parameters.items():
        value = tensors[name]
        experts, found, _ = name.partition(".lora.")
        if found:
            module = model.get_submodule(experts)
            assert isinstance(module, Mistral4Experts)
            value = value[first_expert(module) :][: module.num_local_experts]
        if value.shape != parameter.shape:
            raise AdapterError(
                f"has shape {list(value.shape)}, but this model needs {list(parameter.shape)}.",
                key=stored_name(name, stacks),
                fix="load the adapter on the model it was trained on.",
            )
        parameter.copy_(value)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=sorted) + "\n", encoding="utf-8")
