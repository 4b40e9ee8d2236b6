"""Several adapters on one model: which of them act. What they add is summed, as in PEFT; those that act are trained.

Exercise it: ``pytest tests/ms4_train/adapters/test_several.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ms4_train.adapters.attach import adapted_modules, adapter_names, adapter_parameters, forget_decode
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.adapters.merge import is_merged
from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.errors import AdapterError
from ms4_train.weights.layouts.names import nearest


def unknown_adapter(name: str, known: Sequence[str]) -> AdapterError:
    """The error for a name that is none of those the model carries."""
    close = nearest(name, known) or known
    return AdapterError(f"the model has no adapter {name!r}.", fix=f"it has: {', '.join(close) or 'none'}.")


def set_active_adapters(model: nn.Module, names: Sequence[str], *, trainable: bool = True) -> None:
    """Let these adapters act, in this order, and no others; an empty sequence turns all of them off.

    Args:
        model: carries the adapters.
        names: of those that act.
        trainable: whether they are trained; all others are frozen.

    Raises:
        AdapterError: there is no such adapter, adapters are merged, or these cannot act together.
    """
    known = adapter_names(model)
    for name in names:
        if name not in known:
            raise unknown_adapter(name, known)
    if is_merged(model):
        raise AdapterError("the model's adapters are merged.", fix="unmerge them first.")
    chosen = tuple(dict.fromkeys(names))
    for module_name, module in adapted_modules(model):
        acting = [name for name in chosen if name in module.adapters]
        if isinstance(module, LoraLinear):
            if len(acting) > 1 and any(name in module.lora_magnitude_vector for name in acting):
                raise AdapterError(f"{module_name} has an adapter with DoRA, whose change cannot be added to another's.", fix="name one.")
            if any(name not in acting for name in module.starts):
                raise AdapterError(
                    f"{next(iter(module.starts))!r} was taken out of the base weights (pissa, olora), which lack it without the adapter.",
                    fix="save it, which makes it a plain adapter, and load that.",
                )
        if isinstance(module, TrainedCopy) and len(acting) > 1:
            raise AdapterError(f"{module_name} is saved whole by {acting[0]!r} and by {acting[1]!r}; one of them can run.", fix="name one.")
    for _, module in adapted_modules(model):
        module.active = tuple(name for name in chosen if name in module.adapters)
    for name in known:
        for parameter in adapter_parameters(model, name).values():
            parameter.requires_grad_(trainable and name in chosen)
    forget_decode(model)
