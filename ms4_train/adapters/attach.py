"""Putting a LoRA adapter on a model in place: a module on each target and on each layer's stacked experts; the rest is frozen.

Exercise it: ``pytest tests/ms4_train/adapters/test_attach.py``.

Not covered: other kinds of adapter than LoRA and DoRA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ms4_train.adapters.adapted import AdaptedModule, Low
from ms4_train.adapters.checks import check_section, lora_scale, rank_of
from ms4_train.adapters.embedding_lora import LoraEmbedding
from ms4_train.adapters.expert_lora import StackedLora, StackFactors
from ms4_train.adapters.head_lora import LoraHead
from ms4_train.adapters.initialise import fill
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.adapters.names import DEFAULT_ADAPTER, adapted_name, adapter_of, as_only_adapter, check_adapter_name
from ms4_train.adapters.router_lora import LoraRouter
from ms4_train.adapters.targets import VISION_PREFIXES, Targets, find_targets, matches
from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.model import Mistral4Experts, Mistral4ForCausalLM
from ms4_train.model.moe import Mistral4Router
from ms4_train.model.network import LanguageHead
from ms4_train.model.quantised import num_parameters

__all__ = [
    "AttachReport",
    "TargetRow",
    "adapted_modules",
    "adapted_name",
    "adapter_parameters",
    "adapter_tensors",
    "attach",
    "attach_report",
    "detach",
    "lora_scale",
    "rank_of",
    "refuse_second",
]

Kind = Literal["linear", "experts", "router", "saved"]


@dataclass(frozen=True)
class TargetRow:
    """One target: how many modules (or stacks) it matches, how many of them belong to vision, and the adapter parameters on them."""

    target: str
    kind: Kind
    modules: int
    parameters: int
    vision: int = 0


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


def attach(model: nn.Module, section: AdapterSection, *, name: str = DEFAULT_ADAPTER) -> AttachReport:
    """Put a fresh adapter on ``model`` and freeze everything else.

    The adapter starts as the identity. Its values depend on torch's seed (``torch.manual_seed``) and each parameter's name only, so that
    processes which hold different experts agree. ``section.init_from`` is the caller's: ``load_adapter`` attaches and fills one.
    A further adapter, under another name, acts alone at first (``set_active_adapters``).

    Args:
        model: with its weights loaded; on any device.
        section: rank, scale, dropout, start and targets.
        name: of the adapter.

    Returns:
        What each target matches.

    Raises:
        AdapterError: a target matches nothing, the section asks for what cannot be computed on this model, or the model has an adapter of
            that name already. The model is then unchanged.
    """
    check_adapter_name(name)
    others = adapter_names(model)
    if name in others:
        refuse_second(model)
    targets = find_targets(
        model,
        section.target_modules,
        section.target_parameters,
        exclude_modules=section.exclude_modules,
        modules_to_save=section.modules_to_save,
    )
    check_section(model, section, targets, has_others=bool(others))
    model.requires_grad_(False)
    for module_name in targets.saved_names:
        _saved(model, module_name).add(name)
    for module_name in targets.module_names:
        _add_to_module(model, module_name, section, name)
    for weight_name in targets.router_names:
        router = _wrapped(model, weight_name.removesuffix(".weight"))
        assert isinstance(router, LoraRouter)
        router.add(name, rank=rank_of(section, weight_name), scale=lora_scale(section, weight_name))
    for experts, stacks in _stacks_by_module(targets).items():
        _add_to_experts(model, experts, stacks, section, name)
    fill(model, name, section.init_lora_weights, seed=torch.initial_seed())
    if section.use_dora:
        for module_name in targets.module_names:
            module = model.get_submodule(module_name)
            assert isinstance(module, LoraLinear)
            module.add_magnitude(name)
    for _, module in adapted_modules(model):
        module.train(model.training)  # new modules are in training mode, with dropout, whatever the model's is
        module.active = (name,) if name in module.adapters else ()
    for parameter in adapter_parameters(model, name).values():
        parameter.requires_grad_(True)
    forget_decode(model)
    return attach_report(model, section, name=name)


def refuse_second(model: nn.Module) -> None:
    """Raise ``AdapterError`` where the model carries an adapter."""
    if adapter_names(model):
        raise AdapterError("the model has an adapter already.", fix="load the model again, or merge the adapter first.")


def attach_report(model: nn.Module, section: AdapterSection, *, name: str = DEFAULT_ADAPTER) -> AttachReport:
    """What the targets of ``section`` match in a model that carries the adapter."""
    parameters = adapter_parameters(model, name)
    sizes: dict[Kind, dict[str, int]] = {"linear": {}, "experts": {}, "router": {}, "saved": {}}
    for parameter_name, parameter in parameters.items():
        owner, kind = adapted_name(parameter_name), kind_of(parameter_name)
        known = f"{owner}.weight" if kind == "router" else owner
        sizes[kind][known] = sizes[kind].get(known, 0) + parameter.numel()
    rows: list[TargetRow] = []
    kinds: tuple[tuple[tuple[Kind, ...], list[str]], ...]
    kinds = (("linear",), section.target_modules), (("experts", "router"), section.target_parameters), (("saved",), section.modules_to_save)
    for allowed, targets in kinds:
        for target in targets:
            found_rows = [_row(target, kind, sizes[kind]) for kind in allowed]
            rows += [row for row in found_rows if row.modules] or found_rows[:1]  # all of it may be excluded, which is then seen
    trainable = sum(parameter.numel() for parameter in parameters.values())
    return AttachReport(tuple(rows), trainable, num_parameters(model))


def _row(target: str, kind: Kind, sizes: dict[str, int]) -> TargetRow:
    found = {owner: size for owner, size in sizes.items() if matches(target, owner)}
    vision = sum(f"{owner}.".startswith(VISION_PREFIXES) for owner in found)
    return TargetRow(target, kind, len(found), sum(found.values()), vision)


def kind_of(parameter_name: str) -> Kind:
    """What an adapter parameter belongs to."""
    if ".mlp.experts.lora." in parameter_name:
        return "experts"
    if ".modules_to_save." in parameter_name:
        return "saved"
    return "router" if adapted_name(parameter_name).endswith(".mlp.gate") else "linear"


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters that the model carries."""
    return list(dict.fromkeys(name for _, module in adapted_modules(model) for name in module.adapters))


def adapter_parameters(model: nn.Module, adapter: str | None = None) -> dict[str, nn.Parameter]:
    """The parameters of one adapter, or of all, by their names in the model."""
    owners = ((name, parameter, adapter_of(name)) for name, parameter in model.named_parameters())
    return {name: parameter for name, parameter, owner in owners if owner is not None and adapter in (None, owner)}


def adapter_tensors(model: nn.Module, adapter: str = DEFAULT_ADAPTER) -> dict[str, Tensor]:
    """An adapter's values under the names that an only adapter has in the model, detached; they are live, not copies."""
    return {as_only_adapter(name): parameter.detach() for name, parameter in adapter_parameters(model, adapter).items()}


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, StackedLora | AdaptedModule | TrainedCopy]]:
    """The modules that carry adapters, by their names."""
    for name, module in list(model.named_modules()):
        if isinstance(module, StackedLora | AdaptedModule | TrainedCopy):
            yield name, module


def detach(model: nn.Module) -> None:
    """Remove all adapters; base weights and their names are then those of a model without one.

    Merged adapters are taken out first. Where a start was taken out of the base (PiSSA, OLoRA) it is added again, equal up to rounding.
    """
    for name, module in adapted_modules(model):
        owner, _, leaf = name.rpartition(".")
        parent = model.get_submodule(owner)
        if isinstance(module, StackedLora):
            unmerge_stacks(parent, module)
            setattr(parent, leaf, None)
        elif isinstance(module, TrainedCopy):
            setattr(parent, leaf, module.original_module)
        else:
            module.unmerge()
            if isinstance(module, LoraLinear):
                module.give_back_starts()
            setattr(parent, leaf, module.base_layer)
    forget_decode(model)


@torch.no_grad()
def unmerge_stacks(experts: nn.Module, lora: StackedLora) -> None:
    """Give the stacks of ``experts`` the bits that they had before a merge."""
    for stack, original_eoi in lora.unmerged.items():
        getattr(experts, stack).copy_(original_eoi)
    lora.unmerged.clear()


def forget_decode(model: nn.Module) -> None:
    """Drop matrices that decoding prepared from weights without, or with, the adapter."""
    if isinstance(model, Mistral4ForCausalLM):
        model.release_decode()


def _add_to_module(model: nn.Module, module_name: str, section: AdapterSection, name: str) -> None:
    """An adapter on a linear module, the head or the embedding."""
    module, rank, scale = _wrapped(model, module_name), rank_of(section, module_name), lora_scale(section, module_name)
    if isinstance(module, LoraEmbedding):
        module.add(name, rank=rank, scale=scale)
    else:
        assert isinstance(module, LoraLinear)
        module.add(name, rank=rank, scale=scale, dropout=section.lora_dropout)


def _add_to_experts(model: nn.Module, experts_name: str, stacks: set[str], section: AdapterSection, name: str) -> None:
    experts = model.get_submodule(experts_name)
    assert isinstance(experts, Mistral4Experts)

    def low(stack: str) -> Low | None:
        full = f"{experts_name}.{stack}"
        return Low(rank_of(section, full), lora_scale(section, full)) if stack in stacks else None

    sizes = experts.num_local_experts, experts.gate_up_proj.shape[2], experts.down_proj.shape[2]
    gate_up, down = low("gate_up_proj"), low("down_proj")
    if experts.lora is None:
        is_first = name == DEFAULT_ADAPTER
        experts.lora = StackedLora(
            *sizes, gate_up=gate_up if is_first else None, down=down if is_first else None, like=experts.gate_up_proj
        )
    lora = experts.lora
    assert isinstance(lora, StackedLora)
    if name != DEFAULT_ADAPTER:
        lora.further[name] = StackFactors(*sizes, gate_up=gate_up, down=down, like=experts.gate_up_proj)
    elif not lora.pairs():
        lora.take_default(StackFactors(*sizes, gate_up=gate_up, down=down, like=experts.gate_up_proj))


def _wrapped(model: nn.Module, name: str) -> AdaptedModule:
    """The module with adapters at ``name``, put there if there is none."""
    module = model.get_submodule(name)
    if isinstance(module, AdaptedModule):
        return module
    if isinstance(module, nn.Embedding):
        wrapper: AdaptedModule = LoraEmbedding(module)
    elif isinstance(module, Mistral4Router):
        wrapper = LoraRouter(module)
    else:
        assert isinstance(module, nn.Linear)
        wrapper = LoraHead(module) if isinstance(module, LanguageHead) else LoraLinear(module)
    _replace(model, name, wrapper)
    return wrapper


def _saved(model: nn.Module, name: str) -> TrainedCopy:
    module = model.get_submodule(name)
    if not isinstance(module, TrainedCopy):
        module = TrainedCopy(module)
        _replace(model, name, module)
    return module


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def _stacks_by_module(targets: Targets) -> dict[str, set[str]]:
    grouped: dict[str, set[str]] = {}
    for experts, stack in sorted(targets.stack_names):
        grouped.setdefault(experts, set()).add(stack)
    return grouped
