"""Our adapter section and its tensors -> the ``adapter_config.json`` with which PEFT rebuilds exactly this adapter.

PEFT matches ends of names in transformers' classes. What the section says is kept where it means the adapted modules there; where it does
not (a pattern with ``*``, an exclusion, a name that starts at our root), the shortest ends that do are written in its place.
Exercise it: ``pytest tests/ms4_train/adapters/test_peft_settings.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ms4_train.adapters.adaptable import STACKS
from ms4_train.adapters.ends import by_end, is_bare_end, is_end, matched, pattern_for, shortest_targets
from ms4_train.adapters.peft_format import adapted_parts, outer_name
from ms4_train.config.schema import AdapterSection
from ms4_train.weights.layouts.pieces import ModelConfig, Part, pieces


def peft_settings(section: AdapterSection, tensors: Mapping[str, Tensor], config: ModelConfig, *, base_path: str) -> dict[str, Any]:
    """The content of ``adapter_config.json``.

    Args:
        section: what the adapter was attached with.
        tensors: its parameters under our names.
        config: of the base model; with a vision part the names are those of the multimodal class.
        base_path: recorded as the base model.
    """
    from peft import LoraConfig

    parameters = _parameter_names(config)
    modules = _module_names(parameters)
    adapted = adapted_parts(tensors)
    ranks = adapted.ranks

    def outer(names: Iterable[str]) -> list[str]:
        return [outer_name(name, whole_model=config.vision is not None) for name in names]

    linears = [name for name in adapted.ranks if name not in adapted.parameters]
    settings = LoraConfig(
        r=section.r,
        lora_alpha=_whole(section.lora_alpha),
        lora_dropout=section.lora_dropout,
        use_rslora=section.use_rslora,
        use_dora=section.use_dora,
        target_modules=_ends(section.target_modules, outer(linears), outer(modules), is_end),
        target_parameters=_ends(section.target_parameters, outer(adapted.parameters), outer(parameters), is_end) or None,
        modules_to_save=_ends(section.modules_to_save, outer(adapted.whole), outer(modules), is_bare_end) or None,
        rank_pattern=pattern_for(section.rank_pattern, dict(zip(outer(ranks), ranks.values(), strict=True)), section.r),
        alpha_pattern=pattern_for(
            {end: _whole(value) for end, value in section.alpha_pattern.items()},
            dict(zip(outer(ranks), (_whole(by_end(section.alpha_pattern, name, section.lora_alpha)) for name in ranks), strict=True)),
            _whole(section.lora_alpha),
        ),
        base_model_name_or_path=base_path,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    return settings.to_dict()


def _parameter_names(config: ModelConfig) -> list[str]:
    names = [piece.name for piece in pieces(config) if piece.part is not Part.EXPERT]
    layers = range(config.text.num_hidden_layers)
    return names + [f"model.layers.{layer}.mlp.experts.{stack}" for layer in layers for stack in STACKS]


def _module_names(parameters: Iterable[str]) -> list[str]:
    """Every module on the way to a parameter, as ``named_modules`` gives them."""
    found: dict[str, None] = {}
    for name in parameters:
        words = name.split(".")[:-1]
        found |= dict.fromkeys(".".join(words[:count]) for count in range(1, len(words) + 1))
    return list(found)


def _ends(asked: Sequence[str], chosen: Sequence[str], known: Sequence[str], rule: Callable[[str, str], bool]) -> list[str]:
    """``asked`` without what means nothing where it means exactly ``chosen``; else the shortest ends that do."""
    useful = [end for end in asked if matched([end], known, rule)]
    return useful if matched(useful, known, rule) == set(chosen) else shortest_targets(chosen, known, rule)


def _whole(value: float) -> Any:
    """PEFT writes alpha as an integer where it is one."""
    return int(value) if float(value).is_integer() else value
