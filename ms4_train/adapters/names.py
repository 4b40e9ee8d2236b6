"""Names of adapter parameters in a model: which adapter one belongs to, and which module it changes.

They are PEFT's, ``X.lora_A.default.weight``; those of stacked experts are ours, ``X.mlp.experts.lora.gate_up_a_erd``.
Exercise it: ``pytest tests/ms4_train/adapters/test_names.py``.
"""

from __future__ import annotations

import re

from torch import nn

from ms4_train.errors import AdapterError

DEFAULT_ADAPTER = "default"
STACKS_OF = ".mlp.experts.lora."
_FURTHER = re.compile(r"(?P<module>.+\.mlp\.experts\.lora)\.further\.(?P<adapter>[^.]+)\.(?P<rest>[^.]+)")
_PLAIN = re.compile(
    r"(?P<module>.+?)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|modules_to_save)"
    r"\.(?P<adapter>[^.]+)(?P<rest>\..+)?"
)
_ALLOWED = re.compile(r"[A-Za-z0-9_-]{1,64}")


def adapter_of(name: str) -> str | None:
    """The adapter that a parameter of the model belongs to; None for one of the model itself."""
    if STACKS_OF in name:
        found = _FURTHER.fullmatch(name)
        return found["adapter"] if found else DEFAULT_ADAPTER
    found = _PLAIN.fullmatch(name)
    return found["adapter"] if found else None


def adapted_name(name: str) -> str:
    """The module or parameter that an adapter parameter changes: ``...q_a_proj``, ``...mlp.experts.gate_up_proj``, ``...mlp.gate``."""
    experts, found, leaf = name.partition(STACKS_OF)
    if found:
        return f"{experts}.mlp.experts.{'gate_up_proj' if leaf.rpartition('.')[2].startswith('gate_up') else 'down_proj'}"
    match = _PLAIN.fullmatch(name)
    assert match is not None, name
    return match["module"]


def as_only_adapter(name: str) -> str:
    """The name that the parameter would have in a model with one adapter; files are written under these."""
    if found := _FURTHER.fullmatch(name):
        return f"{found['module']}.{found['rest']}"
    found = _PLAIN.fullmatch(name)
    return name if found is None else f"{found['module']}.{found['kind']}.{DEFAULT_ADAPTER}{found['rest'] or ''}"


def check_adapter_name(name: str) -> None:
    """Raise ``AdapterError`` for a name that cannot be part of a parameter's."""
    if _ALLOWED.fullmatch(name) is None or hasattr(nn.ModuleDict(), name):  # "keys" is no key of a ModuleDict
        raise AdapterError(f"{name!r} is no name for an adapter.", fix="take letters, digits, - and _, at most 64.")
