"""An adapter folder rewritten in another form: PEFT's, as of today, or vLLM's; from any form that is read.

Exercise it: ``ms4 adapter export ADAPTER OUT --format vllm`` and ``pytest tests/ms4_train/adapters/test_export.py``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ms4_train.adapters.files import save_adapter, write_folder
from ms4_train.adapters.stored import BASE_FILE, AdapterFolder, StoredAdapter, check_sum, open_adapter, read_adapter
from ms4_train.adapters.vllm_form import VllmAdapter, to_vllm
from ms4_train.errors import AdapterError, MS4Error
from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.layouts.model_config import read_model_config
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.reading.fingerprint import base_fingerprint
from ms4_train.weights.reading.loading import empty_model

Form = Literal["peft", "vllm"]
MAX_RELATIVE_ERROR = 0.01
"""Of a fused change: what folding a scale into bf16 values can round is 0.4 %."""


@dataclass(frozen=True)
class AdapterBase:
    """The base model of an adapter: its configuration, its name as the adapter records it, and its identity where that is known."""

    config: ModelConfig
    path: str
    fingerprint: str | None


@dataclass(frozen=True)
class Export:
    """What was written: the adapter that was read, its base, and for vLLM its form there."""

    read: StoredAdapter
    base: AdapterBase
    vllm: VllmAdapter | None

    @property
    def skipped_in_decode(self) -> bool:
        """Whether vLLM may leave a part out: it folds ``kv_b_proj`` into the attention of single tokens when it loads the base."""
        return self.vllm is not None and any(".kv_b_proj." in name for name in self.vllm.stored)


def find_base(found: AdapterFolder, folder: Path | None) -> AdapterBase:
    """The base of an adapter: the model in ``folder``, or what the adapter's record says of it.

    Raises:
        AdapterError: the folder holds no record and ``folder`` is None, or the record is damaged.
        WeightsError: ``folder`` is no model.
    """
    record = found.record or {}
    if folder is not None:
        return AdapterBase(read_model_config(folder), str(folder), base_fingerprint(folder))
    if not isinstance(record.get("base"), dict):
        raise AdapterError(
            f"has no {BASE_FILE} that describes the base model.", file=found.folder, fix="name the folder of the base model: --base MODEL."
        )
    path = str(record.get("base_path") or "")
    fingerprint = record.get("base_fingerprint")
    config = ModelConfig(TextConfig.from_dict(record["base"]), _recorded_vision(found, record))
    return AdapterBase(config, path, fingerprint if isinstance(fingerprint, str) else None)


def export_adapter(folder: str | Path, out: str | Path, form: Form, *, base_folder: Path | None = None) -> Export:
    """Read an adapter in any form, check it, and write it in ``form`` into a new folder.

    Args:
        folder: of the adapter.
        out: to make; empty or absent.
        form: ``peft`` as PEFT 0.19.1 and later write it, or ``vllm``.
        base_folder: of the base model; needed where the adapter has no record of ours.

    Raises:
        AdapterError: the adapter is damaged, belongs to another base, or changes what vLLM cannot.
        StorageError: the disk is full, or ``out`` holds files.
    """
    found = open_adapter(folder)
    base = find_base(found, base_folder)
    read = read_adapter(empty_model(base.config.text, vision=base.config.vision), found, base_fingerprint=base.fingerprint)
    check_sum(found)
    if form == "peft":
        names = {"config": base.config.text, "vision": base.config.vision, "base_path": base.path}
        save_adapter(read.tensors, out, section=read.section, **names, base_fingerprint=base.fingerprint or "", replace=False)
        return Export(read, base, None)
    config = _served_config(base)
    vllm = to_vllm(read.tensors, read.section, config, base_path=base.path)
    if vllm.max_error > MAX_RELATIVE_ERROR * vllm.max_change:
        raise AdapterError(f"the fused pairs differ from the adapter by {vllm.max_error:.3g} in a value.", file=folder, fix="report this.")
    record: dict[str, Any] = {"base_path": base.path, "base_fingerprint": base.fingerprint, "base": config.text.to_dict(), "form": "vllm"}
    if config.vision is not None:
        record["base_vision"] = dataclasses.asdict(config.vision)
    write_folder(out, vllm.stored, vllm.settings, record, replace=False)
    return Export(read, base, vllm)


def _served_config(base: AdapterBase) -> ModelConfig:
    """The configuration of what vLLM will serve: an adapter trained on the text alone does not record that its base sees."""
    if base.config.vision is None and base.path and Path(base.path).is_dir():
        try:
            return dataclasses.replace(base.config, vision=read_model_config(base.path).vision)
        except MS4Error:
            return base.config
    return base.config


def _recorded_vision(found: AdapterFolder, record: dict[str, Any]) -> VisionConfig | None:
    values = record.get("base_vision")
    if values is None:
        return None
    try:
        return VisionConfig(**values)
    except TypeError as error:
        raise AdapterError(f"is no configuration of a vision tower ({error}).", file=found.folder / BASE_FILE, key="base_vision") from None
