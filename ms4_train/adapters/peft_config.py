"""A PEFT ``adapter_config.json`` -> our adapter section, refusing what would be computed differently here.

PEFT allows a regular expression or a shorthand as ``target_modules``. An expression from a file is not evaluated; the targets are then read
off the tensors of the file. Exercise it: ``pytest tests/ms4_train/adapters/test_peft_config.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from ms4_train.adapters.peft_format import stored_modules
from ms4_train.adapters.targets import adaptable_linears, adaptable_stacks, matches
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.weights.layouts.names import and_more

_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none",),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "layers_to_transform": (None, []),
    "exclude_modules": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
"""Settings that change what an adapter computes, and the values under which it is plain LoRA."""


def section_from_peft(settings: Mapping[str, Any], stored: Mapping[str, object], model: nn.Module, *, file: Path) -> AdapterSection:
    """The adapter section that gives the adapter of a PEFT file on ``model``.

    Args:
        settings: content of ``adapter_config.json``.
        stored: the tensors of the file, by their names there.
        model: the base model, without an adapter.
        file: named in errors.

    Raises:
        AdapterError: not plain LoRA, a value of the wrong type, or tensors of modules that this model does not have.
    """
    if settings.get("peft_type") != "LORA":
        raise _refuse(f"is {settings.get('peft_type')!r}; only LORA is read.", file, "peft_type")
    for key, plain in _PLAIN.items():
        if key in settings and settings[key] not in plain:
            raise _refuse(f"is {settings[key]!r}, which is not computed here.", file, key)
    if not isinstance(settings.get("use_rslora") or False, bool):
        raise _refuse(f"must be true or false, got {settings['use_rslora']!r}.", file, "use_rslora")
    all_stacks, linears = adaptable_stacks(model), adaptable_linears(model)
    parameters = _targets(settings.get("target_parameters") or [], all_stacks, file, "target_parameters")
    modules = stored_modules(stored)
    wrappers = {name.rpartition(".")[0] for name in all_stacks if any(matches(target, name) for target in parameters)}
    strange = sorted(name for name in modules if name not in linears and name.removesuffix(".base_layer") not in wrappers)
    if strange:
        raise _refuse(f"this model has nothing to adapt at {strange[0]}{and_more(strange)}.", file, "target_modules")
    named = settings.get("target_modules") or []
    if isinstance(named, str):
        targets = shortest_targets([name for name in linears if name in modules], linears)
    else:
        targets = _targets(named, linears, file, "target_modules")
    try:
        return AdapterSection(
            r=_number(settings, "r", int, file),
            lora_alpha=_number(settings, "lora_alpha", float, file),
            lora_dropout=_number(settings, "lora_dropout", float, file) if settings.get("lora_dropout") else 0.0,
            use_rslora=bool(settings.get("use_rslora")),
            target_modules=targets,
            target_parameters=parameters,
        )
    except ValidationError as error:
        details = error.errors()[0]
        message = details["msg"].removeprefix("Value error, ")
        raise _refuse(f"{message}.", file, ".".join(str(part) for part in details["loc"]) or None) from None


def shortest_targets(chosen: list[str], known: list[str]) -> list[str]:
    """The shortest ends of names that match exactly ``chosen`` among ``known``."""
    wanted = set(chosen)
    targets: list[str] = []
    for name in chosen:
        words = name.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        end = next(end for end in ends if all(other in wanted for other in known if matches(end, other)))
        if end not in targets:
            targets.append(end)
    return targets


def _targets(named: Any, known: list[str], file: Path, key: str) -> list[str]:
    """The targets of a file that match anything here; lists made for several models name more."""
    if not isinstance(named, list) or not all(isinstance(target, str) for target in named):
        raise _refuse("must be a list of names.", file, key)
    return [target for target in named if any(matches(target, name) for name in known)]


def _number(settings: Mapping[str, Any], key: str, kind: type[int] | type[float], file: Path) -> Any:
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, (int,) if kind is int else (int, float)):
        raise _refuse(f"must be a number, got {value!r}.", file, key)
    return value


def _refuse(message: str, file: Path, key: str | None) -> AdapterError:
    return AdapterError(message, file=file, key=key, fix="use a plain LoRA adapter of this model.")
