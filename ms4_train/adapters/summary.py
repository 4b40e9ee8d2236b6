"""What an adapter folder holds, target by target, and everything that is wrong with it.

Exercise it: ``ms4 adapter inspect FOLDER`` and ``pytest tests/ms4_train/adapters/test_summary.py``.

Not covered without a record of ours or a base model: missing pairs, shapes, and the layout of stacks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ms4_train.adapters.export import AdapterBase, find_base
from ms4_train.adapters.half_saved import find_lost_share
from ms4_train.adapters.peft_format import other_tensors, own_name, parameter_name, stored_modules
from ms4_train.adapters.stored import AdapterFolder, check_sum, open_adapter, read_adapter, read_tensors
from ms4_train.adapters.vllm_split import is_fused
from ms4_train.errors import AdapterError, MS4Error
from ms4_train.weights.reading.loading import empty_model


@dataclass(frozen=True)
class TargetSummary:
    """The pairs on one kind of module, all layers together.

    Attributes:
        target: name of the modules, ``*`` for the number of a layer.
        modules: how many there are.
        ranks: of their pairs; of stacks the ranks of all experts together where the number of experts is not known.
        parameters: values of all their tensors.
        norm_b: Frobenius norm of all B together; 0 for an adapter that was not trained.
        zero_b: how many B are all zero.
    """

    target: str
    modules: int
    ranks: tuple[int, ...]
    parameters: int
    norm_b: float
    zero_b: int


@dataclass(frozen=True)
class AdapterSummary:
    """An adapter folder.

    Attributes:
        written_by: this program, or the version of PEFT that the settings record.
        form: ``PEFT`` or ``vLLM``.
        layout: of stacks of experts, or None where there are none or it is not known.
        base: name of the base model as recorded or given; None where neither is there.
        settings: rank, alpha and options.
        whole: modules trained whole.
        problems: everything that is wrong; an adapter with any is refused by training, evaluation and merging.
    """

    folder: str
    written_by: str
    form: str
    layout: str | None
    base: str | None
    fingerprint: str | None
    settings: dict[str, Any]
    targets: tuple[TargetSummary, ...]
    whole: tuple[str, ...]
    tensors: int
    parameters: int
    num_bytes: int
    types: tuple[str, ...]
    problems: tuple[str, ...]


def inspect_adapter(folder: str | Path, *, base_folder: Path | None = None) -> AdapterSummary:
    """Inspect an adapter.

    Args:
        folder: of the adapter, ours, PEFT's or vLLM's.
        base_folder: of a model to check it against; without one the adapter's own record is used.

    Raises:
        AdapterError: there is no such folder.
        UntrustedInputError: a file is missing, cut off or damaged.
        WeightsError: ``base_folder`` is no model.
    """
    found = open_adapter(folder)
    base = None if found.record is None and base_folder is None else find_base(found, base_folder)
    stored = read_tensors(found.weights)
    layout, problems = _check(found, base, stored)
    experts = base.config.text.n_routed_experts if base else 1
    infos = found.header.values()
    version = found.settings.get("peft_version")
    return AdapterSummary(
        folder=str(folder),
        written_by="ms4-train" if found.record is not None else f"PEFT {version}" if isinstance(version, str) else "unknown",
        form="vLLM" if is_fused(found.header) else "PEFT",
        layout=layout,
        base=base.path if base else _text(found.settings.get("base_model_name_or_path")),
        fingerprint=base.fingerprint if base else None,
        settings={key: found.settings.get(key) for key in ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")},
        targets=tuple(_targets(stored, experts)),
        whole=tuple(sorted({_layerless(own_name(name)) for name in other_tensors(stored) if not name.endswith(".base_layer.weight")})),
        tensors=len(stored),
        parameters=sum(tensor.numel() for tensor in stored.values()),
        num_bytes=sum(info.stop - info.start for info in infos),
        types=tuple(sorted({info.dtype for info in infos})),
        problems=tuple(problems),
    )


def _check(found: AdapterFolder, base: AdapterBase | None, stored: Mapping[str, Tensor]) -> tuple[str | None, list[str]]:
    """The layout of stacks, and every problem."""
    problems: list[str] = []
    layout = None
    try:
        if base is not None:
            model = empty_model(base.config.text, vision=base.config.vision)
            read = read_adapter(model, found, base_fingerprint=base.fingerprint)
            layout = read.layout.value if read.layout else None
        else:
            _check_alone(stored)
    except MS4Error as error:
        problems.append(str(error))
    try:
        check_sum(found)
    except AdapterError as error:
        problems.append(str(error))
    return layout, problems


def _check_alone(stored: Mapping[str, Tensor]) -> None:
    """What can be told without knowing the model."""
    copies = [name for name in other_tensors(stored) if not name.endswith(".base_layer.weight")]
    whole = {own_name(name).rpartition(".")[0] for name in copies}
    ours = {parameter_name(name, whole): name for name in stored}
    for name, tensor in stored.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError("holds values that are NaN or infinite.", key=name)
        for side, other in (("A", "B"), ("B", "A")):
            if f".lora_{side}." in name and name.replace(f".lora_{side}.", f".lora_{other}.") not in stored:
                raise AdapterError(f"is there, but lora_{other} is missing.", key=name)
    lost = find_lost_share({name: stored[key] for name, key in ours.items()})
    if lost is not None:
        raise AdapterError(f"the adapter {lost.message}", key=ours[lost.name])


def _targets(stored: Mapping[str, Tensor], experts: int) -> list[TargetSummary]:
    groups: dict[str, list[str]] = {}
    for module in stored_modules(stored):
        groups.setdefault(_layerless(module), []).append(module)
    by_module: dict[str, list[tuple[str, Tensor]]] = {}
    for name, tensor in stored.items():
        by_module.setdefault(own_name(name).rpartition(".lora_")[0], []).append((own_name(name), tensor))
    rows: list[TargetSummary] = []
    for target, modules in sorted(groups.items()):
        members = [pair for module in modules for pair in by_module[module]]
        sides_a = [tensor for name, tensor in members if ".lora_A." in name or name.endswith("lora_embedding_A")]
        sides_b = [tensor.float() for name, tensor in members if ".lora_B." in name or name.endswith("lora_embedding_B")]
        shared = experts if ".mlp.experts" in target else 1
        norms = [float(torch.linalg.vector_norm(tensor)) for tensor in sides_b]
        rows.append(
            TargetSummary(
                target=_stack_words(target, set(groups)),
                modules=len(modules),
                ranks=tuple(sorted({tensor.shape[0] // shared for tensor in sides_a if tensor.ndim == 2})),
                parameters=sum(tensor.numel() for _, tensor in members),
                norm_b=sum(norm * norm for norm in norms) ** 0.5,
                zero_b=sum(norm == 0 for norm in norms),
            )
        )
    return rows


def _layerless(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _stack_words(target: str, targets: set[str]) -> str:
    """Wrappers of stacks by what they wrap, where the file tells."""
    if target.endswith(".mlp.experts.base_layer"):
        return target.replace("base_layer", "gate_up_proj")
    if target.endswith(".mlp.experts") and f"{target}.base_layer" in targets:
        return f"{target}.down_proj"
    return target


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
