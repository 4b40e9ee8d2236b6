"""Reading an adapter folder against a model: what the file holds, under our names, checked before anything is attached.

Refused with the file and the tensor named: another base; settings that are not computed here; tensors that are missing, unexpected,
misshapen, transposed, of another rank, not finite, or only one process's share; a file that is not the one written with the record beside
it. Exercise it: ``pytest tests/ms4_train/adapters/test_stored.py``.

Not covered: changed values in a folder without our record; shapes and zeros are all there is to go by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ms4_train.adapters.adaptable import STACKS, Adaptable, adaptable_parts
from ms4_train.adapters.complete import check_complete, expected_shapes
from ms4_train.adapters.ends import matched
from ms4_train.adapters.half_saved import HALF_SAVED_FIX, find_lost_share
from ms4_train.adapters.peft_config import saved_modules, section_from_peft
from ms4_train.adapters.peft_format import adapted_stacks, from_peft, is_vision_name, other_tensors, own_name, stored_name
from ms4_train.adapters.stack_layout import StackLayout, StackShapes, find_layout
from ms4_train.adapters.vllm_split import is_fused, split_fused
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError, UntrustedInputError
from ms4_train.model import TextConfig
from ms4_train.untrusted import TensorInfo, parse_json, read_bytes, read_safetensors_header
from ms4_train.weights.checksums import file_sha256
from ms4_train.weights.reading.fingerprint import is_same_base

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "ms4_adapter.json"
MAX_CONFIG_BYTES = 4 << 20
_READABLE = ("F32", "BF16", "F16")
_BASE_COPY = ".base_layer.weight"
_OTHER_MODEL = "load the adapter on the model it was trained on."


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter folder whose headers are read.

    Attributes:
        settings: content of ``adapter_config.json``.
        header: of the tensors.
        record: content of ``ms4_adapter.json``, or None in a folder that another program wrote.
        tensors: where the file's tensors had to be rebuilt, these; else None, and the file is read.
    """

    folder: Path
    settings: dict[str, Any]
    header: dict[str, TensorInfo]
    record: dict[str, Any] | None
    tensors: dict[str, Tensor] | None = None

    @property
    def weights(self) -> Path:
        """The file of the tensors."""
        return self.folder / WEIGHTS_FILE


@dataclass(frozen=True)
class StoredAdapter:
    """The adapter of a folder: how it was attached, its full tensors under our names, and how the file stores stacks of experts."""

    section: AdapterSection
    tensors: dict[str, Tensor]
    layout: StackLayout | None


def open_adapter(folder: str | Path) -> AdapterFolder:
    """Read the headers of a folder.

    Raises:
        AdapterError: there is no such folder, or a tensor of a type that is not read.
        UntrustedInputError: a file is missing, cut off or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AdapterError("there is no such folder.", file=folder, fix="check the path; relative paths start at the current folder.")
    record = read_object(folder / BASE_FILE) if (folder / BASE_FILE).exists() else None
    found = AdapterFolder(folder, read_object(folder / CONFIG_FILE), read_safetensors_header(folder / WEIGHTS_FILE), record)
    for name, info in found.header.items():
        if info.dtype not in _READABLE:
            raise AdapterError(
                f"has type {info.dtype}, which is not read.", file=found.weights, key=name, fix="save the adapter in F32 or BF16."
            )
    return found


def read_adapter(model: nn.Module, found: AdapterFolder, *, base_fingerprint: str | None) -> StoredAdapter:
    """Read and check everything that ``found`` holds; ``model`` is not touched.

    Args:
        model: the base, without an adapter; may lie on the meta device, copies of base weights are then not compared.
        found: from ``open_adapter``.
        base_fingerprint: of ``model``; None skips the comparison with the recorded one.

    Raises:
        AdapterError: the adapter belongs to another model, is not computed here, or is damaged as the module's docstring says.
        UntrustedInputError: the file cannot be read.
    """
    _refuse_other_base(found, base_fingerprint)
    file = found.folder / CONFIG_FILE
    found = _as_peft(found, model)
    section = section_from_peft(found.settings, found.header, model, file=file)
    whole = saved_modules(found.settings, found.header, model, file=file)
    parts = adaptable_parts(model)
    stacks = matched(section.target_parameters, [name for name, part in parts.items() if part.kind == "stack"])
    pairs = {(experts, stack) for experts, _, stack in (name.rpartition(".") for name in stacks)}
    num_experts = next((part.experts for part in parts.values() if part.kind == "stack"), 1)
    layout = _layout(found, pairs, parts) if pairs else None
    try:
        tensors = from_peft(
            _without_base_copies(found.tensors or read_tensors(found.weights), model, section),
            stacks=pairs,
            num_experts=num_experts,
            whole=whole,
            layout=layout or StackLayout.NEW,
        )
        check_complete(tensors, expected_shapes(model, section, parts))
        _check_values(tensors, model)
    except AdapterError as error:
        raise AdapterError(error.message, file=found.weights, key=error.key, fix=error.fix) from None
    return StoredAdapter(section, tensors, layout)


def check_sum(found: AdapterFolder) -> None:
    """Compare the tensors' file with the sum in our record, if there is one.

    Raises:
        AdapterError: it is not the file that was written with the record.
    """
    recorded = (found.record or {}).get("weights_sha256")
    if recorded is not None and recorded != file_sha256(found.weights):
        raise AdapterError(
            f"is not the file that was written together with {BASE_FILE}: its SHA-256 differs.",
            file=found.weights,
            fix=f"copy the adapter again; if the tensors were changed on purpose, remove weights_sha256 from {BASE_FILE}.",
        )


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that a small file holds.

    Raises:
        AdapterError: it holds something else.
        UntrustedInputError: it is missing or no JSON.
    """
    content = parse_json(read_bytes(file, max_bytes=MAX_CONFIG_BYTES), file=file)
    if not isinstance(content, dict):
        raise AdapterError("must hold one JSON object.", file=file, fix="copy the file again.")
    return content


def _refuse_other_base(found: AdapterFolder, fingerprint: str | None) -> None:
    if found.record is None or fingerprint is None:
        return
    recorded = found.record.get("base_fingerprint")
    touches_vision = any(is_vision_name(own_name(key)) for key in found.header)
    if isinstance(recorded, str) and is_same_base(recorded, fingerprint, vision=touches_vision):
        return
    path = found.record.get("base_path")
    raise AdapterError(
        "the adapter was trained on another model" + (f" ({path})." if isinstance(path, str) else "."),
        file=found.folder / BASE_FILE,
        key="base_fingerprint",
        fix="set model.path to the model it was trained on.",
    )


def _as_peft(found: AdapterFolder, model: nn.Module) -> AdapterFolder:
    """A folder in vLLM's form as one in PEFT's; any other as it is."""
    if not is_fused(found.header):
        return found
    config = getattr(model, "config", None)
    assert isinstance(config, TextConfig)
    try:
        tensors, settings = split_fused(read_tensors(found.weights), found.settings, config)
    except AdapterError as error:
        raise AdapterError(error.message, file=found.weights, key=error.key, fix=error.fix) from None
    header = {name: TensorInfo("F32", tuple(tensor.shape), 0, 0) for name, tensor in tensors.items()}
    return replace(found, settings=settings, header=header, tensors=tensors)


def _layout(found: AdapterFolder, pairs: set[tuple[str, str]], parts: Mapping[str, Adaptable]) -> StackLayout:
    """How the file stores stacks; of stacks with a side missing nothing is known, and they are refused later."""
    shapes = {own_name(key): info.shape for key, info in found.header.items()}
    stacks: list[StackShapes] = []
    for experts, stack in sorted(pairs):
        both = all((experts, other) in pairs for other in STACKS)
        module = f"{experts}.base_layer" if both and stack == STACKS[0] else experts
        a, b = (shapes.get(f"{module}.lora_{side}.weight") for side in "AB")
        part = parts[f"{experts}.{stack}"]
        if a is not None and b is not None:
            stacks.append(StackShapes(f"{experts}.{stack}", part.outputs, part.inputs, a, b))
    return find_layout(stacks, found.settings, ours=found.record is not None, file=found.folder / CONFIG_FILE)


def _without_base_copies(stored: dict[str, Tensor], model: nn.Module, section: AdapterSection) -> dict[str, Tensor]:
    """Leave out the copies of base weights that PEFT adds where it adapts an embedding or the head; they must be the model's own."""
    kept = dict(stored)
    targeted = section.target_modules
    for key in other_tensors(stored):
        module = own_name(key).removesuffix(_BASE_COPY)
        if not key.endswith(_BASE_COPY) or not matched(targeted, [module]):
            continue
        weight, copy = model.get_submodule(module).weight, kept.pop(key)
        assert isinstance(weight, Tensor)
        if weight.shape != copy.shape or (not weight.is_meta and not torch.equal(copy.to(weight), weight.detach())):
            raise AdapterError("is not the weight of this model, which the adapter belongs to.", key=key, fix=_OTHER_MODEL)
    return kept


def _check_values(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    stacks = adapted_stacks(tensors)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise AdapterError(
                f"holds {count:,} values that are NaN or infinite.",
                key=stored_name(name, stacks),
                fix="go back to an adapter from before training diverged.",
            )
    lost = find_lost_share(tensors, model)
    if lost is not None:
        raise AdapterError(f"the adapter {lost.message}", key=stored_name(lost.name, stacks), fix=HALF_SAVED_FIX)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file whose header is checked.

    Raises:
        UntrustedInputError: it cannot be read.
    """
    try:
        with safe_open(file, "pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise UntrustedInputError(f"cannot be read ({error}).", file=file, fix="copy the file again.") from error
