"""Which modules and parameters an adapter's targets mean.

A target is the end of a name, cut at a dot, as in PEFT: ``o_proj`` is the output projection of the text network and of the vision tower,
``self_attn.o_proj`` that of the text network alone. With ``*`` in it a target is a pattern of the whole name, in which ``*`` stands for
anything: ``vision_tower.*``. Each target must match; what is saved whole or excluded is then left out, as in PEFT.
Exercise it: ``pytest tests/ms4_train/adapters/test_targets.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ms4_train.adapters.adapted import AdaptedModule
from ms4_train.adapters.ends import is_end
from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.config.schema import PRESETS
from ms4_train.errors import AdapterError
from ms4_train.model import Mistral4Experts
from ms4_train.model.moe import Mistral4Router
from ms4_train.model.quantised import QuantisedLinear, QuantisedStack
from ms4_train.weights.layouts.names import nearest

STACK_NAMES = ("gate_up_proj", "down_proj")
VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.")


@dataclass(frozen=True)
class Targets:
    """What the targets of an adapter match: target -> full names, in the order of the model.

    Attributes:
        modules: linear modules, the head and the embedding among them.
        parameters: stacked experts and routers' weights.
        saved: modules that are trained whole.
    """

    modules: dict[str, list[str]]
    parameters: dict[str, list[str]]
    saved: dict[str, list[str]]

    @property
    def module_names(self) -> list[str]:
        """Every module matched, once."""
        return _once(self.modules)

    @property
    def router_names(self) -> list[str]:
        """Every router's weight matched, once: ``...mlp.gate.weight``."""
        return [name for name in _once(self.parameters) if not name.endswith(STACK_NAMES)]

    @property
    def stack_names(self) -> set[tuple[str, str]]:
        """Every stack matched, as (name of the experts module, ``gate_up_proj`` or ``down_proj``)."""
        found = (name.rpartition(".") for name in _once(self.parameters) if name.endswith(STACK_NAMES))
        return {(experts, stack) for experts, _, stack in found}

    @property
    def saved_names(self) -> list[str]:
        """Every module that is trained whole, once."""
        return _once(self.saved)

    @property
    def names(self) -> list[str]:
        """All matched by targets, modules first."""
        return [*self.module_names, *_once(self.parameters)]


def matches(target: str, name: str) -> bool:
    """Whether ``target`` is ``name``, or its end, cut at a dot; or a pattern of it, where it holds ``*``."""
    if "*" in target:
        return fnmatchcase(name, target)
    return is_end(target, name)


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by the name it has without adapters; what adapters hold is left out, and modules with adapters stand for their own."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, AdaptedModule | TrainedCopy):
            inside.append(f"{name}.")
        yield name, module


def adaptable_linears(model: nn.Module) -> list[str]:
    """Full names of the linear modules that an adapter may change: attention, shared experts, vision tower, projector, head."""
    return [name for name, module in plain_modules(model) if isinstance(_base(module), nn.Linear)]


def adaptable_embeddings(model: nn.Module) -> list[str]:
    """Full names of the embeddings that an adapter may change."""
    return [name for name, module in plain_modules(model) if isinstance(_base(module), nn.Embedding)]


def adaptable_stacks(model: nn.Module) -> list[str]:
    """Full names of the stacked expert parameters."""
    experts = [name for name, module in plain_modules(model) if isinstance(module, Mistral4Experts)]
    return [f"{name}.{stack}" for name in experts for stack in STACK_NAMES]


def adaptable_routers(model: nn.Module) -> list[str]:
    """Full names of the routers' weights."""
    return [f"{name}.weight" for name, module in plain_modules(model) if isinstance(_base(module), Mistral4Router)]


def find_targets(
    model: nn.Module,
    target_modules: Iterable[str],
    target_parameters: Iterable[str],
    *,
    exclude_modules: Sequence[str] = (),
    modules_to_save: Iterable[str] = (),
) -> Targets:
    """Match every target.

    Raises:
        AdapterError: a target matches nothing that can be adapted, and the message gives the nearest names; or a module cannot be saved
            whole.
    """
    saved = {target: _savable(model, target) for target in modules_to_save}
    kept = [f"{name}." for name in _once(saved)]

    def is_free(name: str) -> bool:
        return not any(f"{name}.".startswith(prefix) for prefix in kept)

    modules = [*adaptable_linears(model), *adaptable_embeddings(model)]
    parameters = [*adaptable_stacks(model), *adaptable_routers(model)]
    wanted = [name for name in modules if is_free(name) and not any(matches(target, name) for target in exclude_modules)]
    found_modules = {target: [name for name in wanted if matches(target, name)] for target in target_modules}
    found_parameters = {target: [name for name in parameters if is_free(name) and matches(target, name)] for target in target_parameters}
    for target in exclude_modules:
        if not any(matches(target, name) for name in modules):
            raise AdapterError(f"{target!r} matches no linear module.", key="adapter.exclude_modules", fix="remove it.")
    for target in found_modules:
        if not any(matches(target, name) for name in modules):
            raise _no_match(target, "adapter.target_modules", modules, parameters)
    for target in found_parameters:
        if target == "weight" or not any(matches(target, name) for name in parameters):
            raise _no_match(target, "adapter.target_parameters", parameters, modules)
    targets = Targets(found_modules, found_parameters, saved)
    if not targets.names and not targets.saved_names:
        raise AdapterError("nothing is left of the targets.", key="adapter.exclude_modules", fix="exclude less.")
    return targets


def _base(module: nn.Module) -> nn.Module:
    return module.base_layer if isinstance(module, AdaptedModule) else module


def _once(found: dict[str, list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in found.values() for name in names))


def _savable(model: nn.Module, target: str) -> list[str]:
    """The modules that ``target`` names among those to be trained whole."""
    known = dict(plain_modules(model))
    names = [name for name in known if name and matches(target, name)]
    key = "adapter.modules_to_save"
    if not names:
        close = nearest(target, dict.fromkeys(name.rpartition(".")[2] for name in known if name))
        raise AdapterError(f"{target!r} matches no module.", key=key, fix=f"nearest names: {', '.join(close) or 'none'}.")
    for name in names:
        inside = list(known[name].modules())
        if any(isinstance(module, Mistral4Experts) for module in inside):
            raise AdapterError(
                f"{target!r} holds routed experts ({name}), which an adapter's file does not carry whole.",
                key=key,
                fix="name smaller modules, or train the full model without an adapter section.",
            )
        if any(isinstance(module, QuantisedLinear | QuantisedStack) for module in inside):
            raise AdapterError(
                f"{target!r} holds quantised weights ({name}), which are frozen.", key=key, fix="remove it, or set model.dequantize: true."
            )
        if next(known[name].parameters(), None) is None:
            raise AdapterError(f"{target!r} holds no parameter that can be trained ({name}).", key=key, fix="remove it.")
    return names


def _no_match(target: str, key: str, known: list[str], other: list[str]) -> AdapterError:
    is_module = key == "adapter.target_modules"
    other_key = "adapter.target_parameters" if is_module else "adapter.target_modules"
    if target == "weight":
        return AdapterError("'weight' names every weight of the model in PEFT.", key=key, fix="write mlp.gate.weight for the routers.")
    message = f"{target!r} matches {'no linear module' if is_module else 'no stacked expert parameter'}."
    if any(matches(target, name) for name in other):
        return AdapterError(message, key=key, fix=f"put it under {other_key}.")
    if target in PRESETS["vision"][0] or target.startswith(VISION_PREFIXES):
        return AdapterError(message, key=key, fix="this model has no vision tower; leave the target out, or take preset: language.")
    if is_module and any(matches(f"{target}.weight", name) for name in other):
        return AdapterError(
            f"{target!r} is a router, whose weight is no linear module.",
            key=key,
            fix="write mlp.gate.weight under adapter.target_parameters, or mlp.gate under adapter.modules_to_save.",
        )
    suffixes = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in known))
    close = nearest(target, [name.rpartition(".")[2] for name in suffixes] + suffixes + known)
    names = list(dict.fromkeys(close)) or suffixes
    return AdapterError(message, key=key, fix=f"nearest names: {', '.join(names)}.")
