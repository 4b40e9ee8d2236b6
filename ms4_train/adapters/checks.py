"""What an adapter section asks for on a model, target by target, and what is refused because it would not be computed as asked.

Exercise it: ``pytest tests/ms4_train/adapters/test_checks.py``.
"""

from __future__ import annotations

import math

from torch import nn

from ms4_train.adapters.adapted import AdaptedModule
from ms4_train.adapters.ends import by_end
from ms4_train.adapters.expert_lora import StackedLora
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.adapters.targets import Targets, matches
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.model.network import LanguageHead
from ms4_train.model.quantised import QuantisedLinear
from ms4_train.weights.layouts.names import nearest


def rank_of(section: AdapterSection, name: str) -> int:
    """The rank on a module or parameter, by its full name."""
    return by_end(section.rank_pattern, name, section.r)


def lora_scale(section: AdapterSection, name: str = "") -> float:
    """Factor of the low-rank product on a module or parameter: ``alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora``."""
    rank = rank_of(section, name)
    return by_end(section.alpha_pattern, name, section.lora_alpha) / (math.sqrt(rank) if section.use_rslora else rank)


def check_section(model: nn.Module, section: AdapterSection, targets: Targets, *, has_others: bool) -> None:
    """Refuse what is not computed, before the model is changed.

    Args:
        model: to be adapted; other adapters may be on it.
        section: of the new adapter.
        targets: what it matches.
        has_others: whether the model has adapters already.

    Raises:
        AdapterError: names the key.
    """
    _check_patterns(section, targets)
    for name in targets.module_names:
        module = model.get_submodule(name)
        _check_module(name, module.base_layer if isinstance(module, AdaptedModule) else module, section)
    taken_out = any(isinstance(module, LoraLinear) and module.starts for module in model.modules())
    if (has_others and section.changes_base) or taken_out:
        raise AdapterError(
            "an adapter that was taken out of the base weights (pissa, olora) cannot share a model with another.",
            key="adapter.init_lora_weights",
            fix="take default, or save that adapter, which makes it a plain one, and load it.",
        )
    merged = any(isinstance(module, AdaptedModule) and module.is_merged for module in model.modules())
    if merged or any(isinstance(module, StackedLora) and module.unmerged for module in model.modules()):
        raise AdapterError("the model's adapters are merged.", fix="unmerge them first.")
    wrapped = {name for name, module in model.named_modules() if isinstance(module, AdaptedModule)}
    for name in targets.saved_names:
        if any(f"{other}.".startswith(f"{name}.") for other in wrapped):
            raise AdapterError(
                f"{name} cannot be saved whole: another adapter is on it.", key="adapter.modules_to_save", fix="remove it there or here."
            )


def _check_module(name: str, module: nn.Module, section: AdapterSection) -> None:
    """What one linear module or embedding cannot do."""
    start = section.init_lora_weights
    if isinstance(module, nn.Embedding):
        if section.use_dora:
            raise AdapterError("DoRA is not computed on an embedding.", key="adapter.use_dora", fix=f"take {name} out of the targets.")
        if section.changes_base:
            raise AdapterError(
                f"{start} is not computed on an embedding.", key="adapter.init_lora_weights", fix=f"take {name} out of the targets."
            )
        return
    assert isinstance(module, nn.Linear)
    if isinstance(module, QuantisedLinear) and (section.use_dora or section.changes_base):
        raise AdapterError(
            f"{'DoRA' if section.use_dora else start} needs the values of {name}, which is quantised.",
            key="adapter.use_dora" if section.use_dora else "adapter.init_lora_weights",
            fix="set model.dequantize: true, or leave the key out.",
        )
    if isinstance(module, LanguageHead) and section.use_dora and section.lora_dropout:
        raise AdapterError(
            "DoRA with dropout is not computed on the head, whose loss is formed chunk by chunk.",
            key="adapter.lora_dropout",
            fix="set it to 0, or take lm_head out of the targets.",
        )
    if section.changes_base and rank_of(section, name) > min(module.in_features, module.out_features):
        raise AdapterError(
            f"the rank {rank_of(section, name)} exceeds what {name} [{module.out_features}, {module.in_features}] can be decomposed into.",
            key="adapter.r",
            fix="lower it, or name a lower one in adapter.rank_pattern.",
        )


def _check_patterns(section: AdapterSection, targets: Targets) -> None:
    """Every pattern matches a target, and none has two: PEFT takes the first, and a file does not keep their order."""
    names = targets.names
    for key, pattern in (("adapter.rank_pattern", section.rank_pattern), ("adapter.alpha_pattern", section.alpha_pattern)):
        for end in pattern:
            if not any(matches(end, name) for name in names):
                close = nearest(end, dict.fromkeys(name.rpartition(".")[2] for name in names))
                hint = f"nearest names: {', '.join(close)}." if close else "name the end of a target."
                raise AdapterError(f"{end!r} matches no target of the adapter.", key=key, fix=hint)
        for name in names:
            found = [end for end in pattern if matches(end, name)]
            if len({pattern[end] for end in found}) > 1:
                raise AdapterError(f"{found[0]!r} and {found[1]!r} both match {name}.", key=key, fix="keep one, or write longer names.")
