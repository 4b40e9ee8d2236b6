"""Putting a LoRA adapter on a model in place: one module on each linear layer, one on each layer's stacked experts; the rest is frozen.

Exercise it: ``pytest tests/ms4_train/adapters/test_attach.py``.

Not covered: DoRA, other kinds of adapter, several adapters at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ms4_train.adapters.expert_lora import StackedLora
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.adapters.peft_format import is_adapter_name
from ms4_train.adapters.targets import Targets, find_targets, matches
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.model import Mistral4Experts, Mistral4ForCausalLM
from ms4_train.model.quantised import num_parameters
from ms4_train.weights.reading.loading import first_expert


@dataclass(frozen=True)
class TargetRow:
    """One target: how many modules (or stacks) it matches and the adapter parameters on them."""

    target: str
    kind: Literal["linear", "experts"]
    modules: int
    parameters: int


@dataclass(frozen=True)
class AttachReport:
    """What an adapter trains: a row per target, adapter parameters, and all parameters of the model with the adapter."""

    rows: tuple[TargetRow, ...]
    trainable: int
    total: int

    @property
    def percent(self) -> float:
        """Trained share of all parameters, in percent."""
        return 100.0 * self.trainable / self.total


def lora_scale(section: AdapterSection) -> float:
    """Factor of the low-rank product: ``alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora``."""
    return section.lora_alpha / (math.sqrt(section.r) if section.use_rslora else section.r)


def attach(model: nn.Module, section: AdapterSection) -> AttachReport:
    """Put a fresh adapter on ``model`` and freeze everything else.

    The adapter starts as the identity. Its values depend on torch's seed (``torch.manual_seed``) and each parameter's name only, so that
    processes which hold different experts agree. ``section.init_from`` is the caller's: ``load_adapter`` attaches and fills one.

    Args:
        model: without an adapter, with its weights loaded; on any device.
        section: rank, scale, dropout and targets.

    Returns:
        What each target matches.

    Raises:
        AdapterError: a target matches nothing, or the model has an adapter already.
    """
    refuse_second(model)
    targets = find_targets(model, section.target_modules, section.target_parameters)
    model.requires_grad_(False)
    for name in targets.linear_names:
        owner, _, leaf = name.rpartition(".")
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        setattr(model.get_submodule(owner), leaf, LoraLinear(base, rank=section.r, scale=lora_scale(section), dropout=section.lora_dropout))
    for name, stacks in _stacks_by_module(targets).items():
        module = model.get_submodule(name)
        assert isinstance(module, Mistral4Experts)
        module.lora = StackedLora(
            module.num_local_experts,
            module.gate_up_proj.shape[2],
            module.down_proj.shape[2],
            rank=section.r,
            scale=lora_scale(section),
            gate_up="gate_up_proj" in stacks,
            down="down_proj" in stacks,
            like=module.gate_up_proj,
        )
    for _, module in adapted_modules(model):
        module.train(model.training)  # new modules are in training mode, with dropout, whatever the model's is
    _fill_a(model, seed=torch.initial_seed())
    _forget_decode(model)
    return attach_report(model, section)


def refuse_second(model: nn.Module) -> None:
    """Raise ``AdapterError`` where the model carries an adapter."""
    if adapter_parameters(model):
        raise AdapterError("the model has an adapter already.", fix="load the model again, or merge the adapter first.")


def attach_report(model: nn.Module, section: AdapterSection) -> AttachReport:
    """What the targets of ``section`` match in a model that carries the adapter."""
    parameters = adapter_parameters(model)
    sizes: dict[str, int] = {}
    for name, parameter in parameters.items():
        owner = adapted_name(name)
        sizes[owner] = sizes.get(owner, 0) + parameter.numel()
    rows: list[TargetRow] = []
    kinds: tuple[tuple[Literal["linear", "experts"], list[str]], ...]
    kinds = ("linear", section.target_modules), ("experts", section.target_parameters)
    for kind, names in kinds:
        for target in names:
            found = [size for owner, size in sizes.items() if matches(target, owner) and (".mlp.experts." in owner) == (kind == "experts")]
            rows.append(TargetRow(target, kind, len(found), sum(found)))
    trainable = sum(parameter.numel() for parameter in parameters.values())
    return AttachReport(tuple(rows), trainable, num_parameters(model))


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if is_adapter_name(name)}


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's values by their names in the model, detached; they are live, not copies."""
    return {name: parameter.detach() for name, parameter in adapter_parameters(model).items()}


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, StackedLora | LoraLinear]]:
    """The modules that carry the adapter, by their names."""
    for name, module in list(model.named_modules()):
        if isinstance(module, StackedLora | LoraLinear):
            yield name, module


def detach(model: nn.Module) -> None:
    """Remove the adapter; base weights and their names are then those of a model without one."""
    for name, module in adapted_modules(model):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, None if isinstance(module, StackedLora) else module.base_layer)
    _forget_decode(model)


def adapted_name(name: str) -> str:
    """The module or stack that an adapter parameter changes: ``...q_a_proj``, ``...mlp.experts.gate_up_proj``."""
    experts, found, leaf = name.partition(".mlp.experts.lora.")
    if found:
        return f"{experts}.mlp.experts.{'gate_up_proj' if leaf.startswith('gate_up') else 'down_proj'}"
    return name.rpartition(".lora_")[0]


def _forget_decode(model: nn.Module) -> None:
    """Drop matrices that decoding prepared from weights without, or with, the adapter."""
    if isinstance(model, Mistral4ForCausalLM):
        model.release_decode()


def _stacks_by_module(targets: Targets) -> dict[str, set[str]]:
    grouped: dict[str, set[str]] = {}
    for experts, stack in sorted(targets.stack_names):
        grouped.setdefault(experts, set()).add(stack)
    return grouped


def peft_config(section: AdapterSection, *, with_stacks: bool, base_path: str | None = None) -> Any:
    """The ``peft.LoraConfig`` of an adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=section.r,
        lora_alpha=_whole(section.lora_alpha),
        lora_dropout=section.lora_dropout,
        use_rslora=section.use_rslora,
        target_modules=list(section.target_modules),
        target_parameters=list(section.target_parameters) if with_stacks and section.target_parameters else None,
        base_model_name_or_path=base_path,
        task_type="CAUSAL_LM",
        inference_mode=False,
    )


def _whole(value: float) -> Any:
    """PEFT writes alpha as an integer where it is one."""
    return int(value) if float(value).is_integer() else value


@torch.no_grad()
def _fill_a(model: nn.Module, *, seed: int) -> None:
    """Fill every A uniformly in +-1/sqrt(inputs), as PEFT does, from a generator of its own; B is zero already."""
    for name, parameter in adapter_parameters(model).items():
        is_stack = ".mlp.experts.lora." in name
        if (name.rpartition(".")[2] not in ("gate_up_a_erd", "down_a_ern")) if is_stack else (".lora_A." not in name):
            continue
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        bound = 1 / math.sqrt(parameter.shape[-1])
        if not is_stack:
            parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator))
            continue
        start = first_expert(model.get_submodule(name.partition(".lora.")[0]))
        for expert in range(start + parameter.shape[0]):  # draws of the experts before ours are made and dropped
            drawn = torch.empty(parameter.shape[1:], dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            if expert >= start:
                parameter[expert - start].copy_(drawn)
