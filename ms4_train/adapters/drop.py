"""Taking one adapter off a model that may carry others; the module goes back in its place where none is left.

Exercise it: ``pytest tests/ms4_train/adapters/test_drop.py``.
"""

from __future__ import annotations

from torch import nn

from ms4_train.adapters.adapted import AdaptedModule
from ms4_train.adapters.attach import adapted_modules, adapter_names, forget_decode
from ms4_train.adapters.expert_lora import StackedLora
from ms4_train.adapters.merge import is_merged
from ms4_train.adapters.several import unknown_adapter
from ms4_train.errors import AdapterError


def drop_adapter(model: nn.Module, name: str) -> None:
    """Remove the adapter ``name``. The others stay, and act as they did; base weights have the bits that they have without it.

    Where a start was taken out of the base (PiSSA, OLoRA) it is added again, equal up to rounding.

    Raises:
        AdapterError: there is no such adapter, or adapters are merged.
    """
    known = adapter_names(model)
    if name not in known:
        raise unknown_adapter(name, known)
    if is_merged(model):
        raise AdapterError("the model's adapters are merged.", fix="unmerge them first.")
    for module_name, module in adapted_modules(model):
        if name not in module.adapters:
            continue
        module.remove(name)
        if not module.adapters:
            owner, _, leaf = module_name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, _below(module))
    forget_decode(model)


def _below(module: nn.Module) -> nn.Module | None:
    """What stood in the module's place before."""
    if isinstance(module, StackedLora):
        return None
    below = module.base_layer if isinstance(module, AdaptedModule) else module.original_module
    assert isinstance(below, nn.Module)
    return below.train(module.training)
