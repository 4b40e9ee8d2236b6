"""Which modules and stacks an adapter's targets mean. A target is the end of a name, cut at a dot, as in PEFT.

Exercise it: ``pytest tests/ms4_train/adapters/test_targets.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ms4_train.errors import AdapterError
from ms4_train.model import Mistral4Experts
from ms4_train.weights.layouts.names import nearest

_LINEAR_PARENTS = (".self_attn", ".mlp.shared_experts")
STACK_NAMES = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Targets:
    """What the targets of an adapter match: target -> full names, in the order of the model."""

    linears: dict[str, list[str]]
    stacks: dict[str, list[str]]

    @property
    def linear_names(self) -> list[str]:
        """Every linear module matched, once."""
        return list(dict.fromkeys(name for names in self.linears.values() for name in names))

    @property
    def stack_names(self) -> set[tuple[str, str]]:
        """Every stack matched, as (name of the experts module, ``gate_up_proj`` or ``down_proj``)."""
        found = (name.rpartition(".") for names in self.stacks.values() for name in names)
        return {(experts, stack) for experts, _, stack in found}


def matches(target: str, name: str) -> bool:
    """Whether ``target`` is ``name`` or its end, cut at a dot."""
    return name == target or name.endswith(f".{target}")


def adaptable_linears(model: nn.Module) -> list[str]:
    """Full names of the linear modules that an adapter may change: attention and shared experts."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[0].endswith(_LINEAR_PARENTS)
    ]


def adaptable_stacks(model: nn.Module) -> list[str]:
    """Full names of the stacked expert parameters."""
    experts = [name for name, module in model.named_modules() if isinstance(module, Mistral4Experts)]
    return [f"{name}.{stack}" for name in experts for stack in STACK_NAMES]


def find_targets(model: nn.Module, target_modules: Iterable[str], target_parameters: Iterable[str]) -> Targets:
    """Match every target.

    Raises:
        AdapterError: a target matches nothing that can be adapted; the message gives the nearest names.
    """
    linears, stacks = adaptable_linears(model), adaptable_stacks(model)
    found_linears = {target: [name for name in linears if matches(target, name)] for target in target_modules}
    found_stacks = {target: [name for name in stacks if matches(target, name)] for target in target_parameters}
    for target, names in found_linears.items():
        if not names:
            raise _no_match(target, "adapter.target_modules", "no linear module", linears, stacks, "adapter.target_parameters", model)
    for target, names in found_stacks.items():
        if not names:
            raise _no_match(
                target, "adapter.target_parameters", "no stacked expert parameter", stacks, linears, "adapter.target_modules", model
            )
    return Targets(found_linears, found_stacks)


def _no_match(target: str, key: str, what: str, known: list[str], other: list[str], other_key: str, model: nn.Module) -> AdapterError:
    message = f"{target!r} matches {what}."
    if any(matches(target, name) for name in other):
        return AdapterError(message, key=key, fix=f"put it under {other_key}.")
    if any(matches(target, name) for name, _ in model.named_modules()) and target.rpartition(".")[2] in ("gate", "lm_head", "embed_tokens"):
        fix = "remove it; the router is trained whole with training.train_router." if target.endswith("gate") else "remove it."
        return AdapterError(f"{target!r} cannot be adapted.", key=key, fix=fix)
    suffixes = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in known))
    close = nearest(target, [name.rpartition(".")[2] for name in suffixes] + suffixes + known)
    names = list(dict.fromkeys(close)) or suffixes
    return AdapterError(message, key=key, fix=f"nearest names: {', '.join(names)}.")
