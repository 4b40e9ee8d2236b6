"""Whether a set of adapter tensors is the whole adapter of a section on a model: none missing, none left over, every one in shape.

Nothing is attached for it. Exercise it: ``pytest tests/ms4_train/adapters/test_complete.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ms4_train.adapters.adaptable import Adaptable
from ms4_train.adapters.checks import rank_of
from ms4_train.adapters.names import DEFAULT_ADAPTER, adapter_of
from ms4_train.adapters.peft_format import adapted_stacks, stack_parameter, stored_name
from ms4_train.adapters.targets import find_targets
from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.weights.layouts.names import and_more, nearest

_OTHER_MODEL = "load the adapter on the model it was trained on."


def expected_shapes(model: nn.Module, section: AdapterSection, parts: Mapping[str, Adaptable]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every full tensor of an adapter of ``section``, under our names.

    Args:
        model: the base; adapters on it do not count.
        section: of the adapter.
        parts: what ``adaptable_parts`` gives for ``model``.
    """
    targets = find_targets(
        model,
        section.target_modules,
        section.target_parameters,
        exclude_modules=section.exclude_modules,
        modules_to_save=section.modules_to_save,
    )
    shapes: dict[str, tuple[int, ...]] = {}
    for name in (*targets.module_names, *(name.removesuffix(".weight") for name in targets.router_names)):
        part = parts[name]
        rank = rank_of(section, f"{name}.weight" if part.kind == "router" else name)
        infix, tail = ("lora_embedding", "") if part.kind == "embedding" else ("lora", ".weight")
        shapes[f"{name}.{infix}_A.{DEFAULT_ADAPTER}{tail}"] = part.shape_a(rank)
        shapes[f"{name}.{infix}_B.{DEFAULT_ADAPTER}{tail}"] = part.shape_b(rank)
        if section.use_dora:
            shapes[f"{name}.lora_magnitude_vector.{DEFAULT_ADAPTER}.weight"] = (part.outputs,)
    for experts, stack in sorted(targets.stack_names):
        part = parts[f"{experts}.{stack}"]
        rank = rank_of(section, f"{experts}.{stack}")
        shapes[stack_parameter(experts, stack, "A")] = part.shape_a(rank)
        shapes[stack_parameter(experts, stack, "B")] = part.shape_b(rank)
    for name in targets.saved_names:
        module = model.get_submodule(name)
        original = module.original_module if isinstance(module, TrainedCopy) else module
        for leaf, parameter in original.named_parameters():
            if adapter_of(f"{name}.{leaf}") is None:  # another adapter's, which ``attach`` refuses to have under a copy
                shapes[f"{name}.modules_to_save.{DEFAULT_ADAPTER}.{leaf.replace('base_layer.', '')}"] = tuple(parameter.shape)
    return shapes


def check_complete(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare tensors, by our names, with ``expected_shapes``.

    Raises:
        AdapterError: names the tensor as it is called in a file.
    """
    stacks = adapted_stacks(shapes)
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise AdapterError(
            f"the tensor is missing{and_more(missing)}.",
            key=stored_name(missing[0], stacks),
            fix="use the whole adapter; adapter_config.json must describe its tensors.",
        )
    unexpected = [name for name in tensors if name not in shapes]
    if unexpected:
        hint = nearest(unexpected[0], shapes)
        raise AdapterError(
            f"is not a tensor of this adapter on this model{and_more(unexpected)}."
            + (f" Nearest names: {', '.join(hint)}." if hint else ""),
            key=unexpected[0],
            fix=_OTHER_MODEL,
        )
    for name, tensor in tensors.items():
        found, needed = tuple(tensor.shape), shapes[name]
        if found == needed:
            continue
        is_turned = tensor.ndim >= 2 and tuple(tensor.mT.shape) == needed
        raise AdapterError(
            f"has shape {list(found)}, but this model needs {list(needed)}{': it is transposed' if is_turned else ''}.",
            key=stored_name(name, stacks),
            fix=_OTHER_MODEL,
        )
