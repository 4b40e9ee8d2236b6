"""A PEFT ``adapter_config.json`` -> our adapter section, refusing what would be computed differently here.

PEFT allows expressions and exclusions where targets stand. Those are not evaluated; the targets are then read off the tensors of the file.
Exercise it: ``pytest tests/ms4_train/adapters/test_peft_config.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from ms4_train.adapters.adaptable import STACKS, Adaptable, adaptable_parts
from ms4_train.adapters.ends import by_end, is_bare_end, matched, pattern_for, shortest_targets
from ms4_train.adapters.peft_format import is_vision_name, own_name, stored_modules
from ms4_train.adapters.targets import plain_modules
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.untrusted import TensorInfo
from ms4_train.weights.layouts.names import and_more

_PLAIN: dict[str, tuple[Any, ...]] = {
    "lora_bias": (False, None),
    "bias": ("none",),
    "fan_in_fan_out": (False, None),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
"""Settings that change what an adapter computes, and the values under which it is plain LoRA."""
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts with which PEFT's own training goes on from changed base weights, which its file does not hold."""
_SELECTING = ("exclude_modules", "layers_to_transform")


def section_from_peft(settings: Mapping[str, Any], stored: Mapping[str, TensorInfo], model: nn.Module, *, file: Path) -> AdapterSection:
    """The adapter section that gives the adapter of a PEFT file on ``model``.

    Args:
        settings: content of ``adapter_config.json``.
        stored: the tensors of the file, by their names there.
        model: the base model, without an adapter.
        file: named in errors.

    Raises:
        AdapterError: something that is not computed here, a value of the wrong type, ranks that the tensors do not have, or tensors of
            modules that this model does not have.
    """
    _refuse_other_kinds(settings, file)
    parts = adaptable_parts(model)
    modules = stored_modules(stored)
    stacks = [name for name, part in parts.items() if part.kind == "stack"]
    routers = [name for name, part in parts.items() if part.kind == "router"]
    parameters = _names(settings, "target_parameters", file)
    parameters = [target for target in parameters if matched([target], [*stacks, *(f"{name}.weight" for name in routers)])]
    adapted_stacks = matched(parameters, stacks)
    _refuse_strange(modules, parts, adapted_stacks, file)
    saved = saved_modules(settings, stored, model, file=file)
    linears = [name for name, part in parts.items() if part.kind in ("linear", "embedding") and name not in saved]
    in_file = [name for name in linears if name in modules]
    targets = _targets(settings, linears, in_file, file)
    adapted_routers = [name for name in routers if matched(parameters, [f"{name}.weight"])]
    adapted = {*matched(targets, linears), *adapted_stacks, *adapted_routers}
    ranks, alphas = _patterns(settings, stored, parts, adapted, file)
    try:
        return AdapterSection(
            r=_number(settings, "r", int, file),
            lora_alpha=_number(settings, "lora_alpha", float, file),
            lora_dropout=_number(settings, "lora_dropout", float, file) if settings.get("lora_dropout") else 0.0,
            use_rslora=bool(settings.get("use_rslora")),
            use_dora=bool(settings.get("use_dora")),
            target_modules=targets,
            target_parameters=parameters,
            modules_to_save=shortest_targets(saved, [name for name, _ in plain_modules(model)]),
            rank_pattern=ranks,
            alpha_pattern=alphas,
        )
    except ValidationError as error:
        details = error.errors()[0]
        message = details["msg"].removeprefix("Value error, ")
        raise _refuse(f"{message}.", file, ".".join(str(part) for part in details["loc"]) or None) from None


def saved_modules(settings: Mapping[str, Any], stored: Mapping[str, object], model: nn.Module, *, file: Path) -> list[str]:
    """The modules of ``model`` that the file trained whole; of the vision part only where the file holds anything of it."""
    ends = [_own_end(end) for end in _names(settings, "modules_to_save", file)]
    found = [name for name, _ in plain_modules(model) if name and matched(ends, [name], is_bare_end)]
    if any(is_vision_name(own_name(key)) for key in stored):
        return found
    return [name for name in found if not is_vision_name(name)]


def stored_rank(name: str, part: Adaptable, sides_a: Mapping[str, TensorInfo], *, both_stacks: bool) -> int | None:
    """The rank of a part's pair in a file, from its A; None where A is missing or cannot be one.

    Args:
        name: of the part, as ``adaptable_parts`` names it.
        part: its sizes.
        sides_a: from ``stored_sides_a``.
        both_stacks: whether both stacks of the layer are adapted.
    """
    module = name
    if part.kind == "stack":
        experts, _, stack = name.rpartition(".")
        module = f"{experts}.base_layer" if both_stacks and stack == STACKS[0] else experts
    info = sides_a.get(module)
    if info is None or not info.shape or info.shape[0] == 0 or info.shape[0] % part.experts:
        return None
    return info.shape[0] // part.experts


def stored_sides_a(stored: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Module, as our model names it, -> what a file's header says of its A."""
    ends = (".lora_A.weight", ".lora_embedding_A")
    named = ((own_name(key), info) for key, info in stored.items())
    return {name.removesuffix(end): info for name, info in named for end in ends if name.endswith(end)}


def _refuse_other_kinds(settings: Mapping[str, Any], file: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise _refuse(f"is {settings.get('peft_type')!r}; only LORA is read.", file, "peft_type")
    for key, plain in _PLAIN.items():
        if key in settings and settings[key] not in plain:
            raise _refuse(f"is {settings[key]!r}, which is not computed here.", file, key)
    for key in ("use_rslora", "use_dora"):
        if not isinstance(settings.get(key) or False, bool):
            raise _refuse(f"must be true or false, got {settings[key]!r}.", file, key)
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
        raise AdapterError(
            f"is {start!r}: the adapter belongs to base weights that PEFT changed in memory.",
            file=file,
            key="init_lora_weights",
            fix="save it in PEFT with path_initial_model_for_weight_conversion, which makes it an adapter of the base itself.",
        )


def _refuse_strange(modules: Collection[str], parts: Mapping[str, Adaptable], stacks: Collection[str], file: Path) -> None:
    """Refuse tensors of modules that the model does not have."""
    wrappers = {name.rpartition(".")[0] for name in stacks}
    places = {name for name, part in parts.items() if part.kind != "stack"}
    strange = sorted(name for name in modules if name not in places and name.removesuffix(".base_layer") not in wrappers)
    if strange and is_vision_name(strange[0]) and not any(is_vision_name(name) for name in parts):
        raise AdapterError(
            f"the adapter changes the vision part ({strange[0]}{and_more(strange)}), which this model does not have.",
            file=file,
            key="target_modules",
            fix="load the whole model, vision tower included.",
        )
    if strange:
        raise _refuse(f"this model has nothing to adapt at {strange[0]}{and_more(strange)}.", file, "target_modules")


def _targets(settings: Mapping[str, Any], linears: list[str], in_file: list[str], file: Path) -> list[str]:
    """The targets of a file that match anything here; lists made for several models name more."""
    named = settings.get("target_modules") or []
    if isinstance(named, str) or any(settings.get(key) not in (None, [], "") for key in _SELECTING):
        return shortest_targets(in_file, linears)
    ends = [_own_end(end) for end in _names(settings, "target_modules", file)]
    absent = matched(ends, linears) - set(in_file)
    if absent and not any(map(is_vision_name, in_file)) and all(map(is_vision_name, absent)):
        return shortest_targets(in_file, linears)  # of the text model: o_proj there is o_proj of the tower here
    return [end for end in ends if matched([end], linears)]


def _patterns(
    settings: Mapping[str, Any], stored: Mapping[str, TensorInfo], parts: Mapping[str, Adaptable], adapted: Collection[str], file: Path
) -> tuple[dict[str, int], dict[str, float]]:
    """The rank and alpha patterns, by ends of our names; ranks are compared with the tensors before any memory is taken."""
    rank, alpha = _number(settings, "r", int, file), _number(settings, "lora_alpha", float, file)
    ranks, alphas = _pattern(settings, "rank_pattern", int, file), _pattern(settings, "alpha_pattern", float, file)
    sides_a = stored_sides_a(stored)
    for name in adapted:
        part = parts[name]
        owner = name.rpartition(".")[0]
        found = stored_rank(name, part, sides_a, both_stacks=all(f"{owner}.{stack}" in adapted for stack in STACKS))
        wanted = by_end(ranks, _pattern_name(name, part), rank)
        if found is not None and found != wanted:
            raise AdapterError(
                f"{name} has rank {found} in the file, but {file.name} says {wanted}.",
                file=file,
                key="rank_pattern" if wanted != rank or ranks else "r",
                fix="use the adapter as it was written.",
            )
    used = [_pattern_name(name, parts[name]) for name in parts if name in adapted]
    return (
        pattern_for(ranks, {name: by_end(ranks, name, rank) for name in used}, rank),
        pattern_for(alphas, {name: by_end(alphas, name, alpha) for name in used}, alpha),
    )


def _pattern_name(name: str, part: Adaptable) -> str:
    """What PEFT matches patterns with: the parameter's name where a parameter is targeted."""
    return f"{name}.weight" if part.kind == "router" else name


def _pattern(settings: Mapping[str, Any], key: str, kind: type[int] | type[float], file: Path) -> dict[str, Any]:
    found = settings.get(key) or {}
    if not isinstance(found, dict):
        raise _refuse("must map names to numbers.", file, key)
    plain: dict[str, Any] = {}
    for end in found:
        name = end.removeprefix("^").removesuffix("$").replace(r"\.", ".")
        if re.fullmatch(r"\w+(\.\w+)*", name) is None:
            raise _refuse(f"{end!r} is an expression, and expressions of files are not evaluated.", file, key)
        plain[_own_end(name)] = _number(found, end, kind, file, key)
    return plain


def _own_end(end: str) -> str:
    """An end of a name of transformers' multimodal class as an end of ours."""
    own = own_name(end)
    return own.removeprefix("language_model.") if own.startswith("language_model.layers.") else own


def _names(settings: Mapping[str, Any], key: str, file: Path) -> list[str]:
    named = settings.get(key) or []
    if not isinstance(named, list) or not all(isinstance(target, str) for target in named):
        raise _refuse("must be a list of names.", file, key)
    return named


def _number(settings: Mapping[str, Any], key: str, kind: type[int] | type[float], file: Path, shown: str | None = None) -> Any:
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, (int,) if kind is int else (int, float)):
        raise _refuse(f"must be a number, got {value!r}.", file, shown or key)
    return value


def _refuse(message: str, file: Path, key: str | None) -> AdapterError:
    return AdapterError(message, file=file, key=key, fix="use a LoRA adapter of this model.")
