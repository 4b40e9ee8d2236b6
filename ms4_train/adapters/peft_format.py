"""Our adapter parameters <-> the tensors of a PEFT adapter file, both ways and exactly.

Ours:  ``model.layers.0.self_attn.q_a_proj.lora_A.default.weight`` and ``model.layers.0.mlp.experts.lora.gate_up_a_erd``.
PEFT's: ``base_model.model.model.layers.0.self_attn.q_a_proj.lora_A.weight`` and ``base_model.model.model.layers.0.mlp.experts...``.

PEFT (0.21, ``tuners/lora/layer.py``, class ``ParamWrapper``) stores a stack's A as [e*r, in], expert slowest, and its B as [out, r*e],
expert FASTEST. It wraps one parameter per wrapper and nests wrappers: with both stacks of a layer adapted, ``down_proj`` is the outer one
(``experts.lora_A``) and ``gate_up_proj`` the inner (``experts.base_layer.lora_A``); a single adapted stack is the outer one.
Exercise it: ``pytest tests/ms4_train/adapters/test_peft_format.py``.

Shape suffixes: e experts, r rank, i inputs, o outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ms4_train.errors import AdapterError
from ms4_train.weights.layouts.names import text_name

ADAPTER_NAME = "default"
PEFT_PREFIX = "base_model.model."
_LINEAR = re.compile(rf"(?P<module>.+)\.lora_(?P<side>[AB])\.{ADAPTER_NAME}\.weight")
_STACKED = re.compile(r"(?P<experts>.+\.mlp\.experts)\.lora\.(?P<stack>gate_up|down)_(?P<side>[ab])_\w{3}")
_STORED = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_OURS = {
    ("gate_up_proj", "A"): "gate_up_a_erd",
    ("gate_up_proj", "B"): "gate_up_b_eir",
    ("down_proj", "A"): "down_a_ern",
    ("down_proj", "B"): "down_b_edr",
}


def is_adapter_name(name: str) -> bool:
    """Whether one of our parameter names is an adapter's."""
    return _LINEAR.fullmatch(name) is not None or _STACKED.fullmatch(name) is not None


def pack_a(a_eri: Tensor) -> Tensor:
    """[e, r, i] -> PEFT's [e*r, i]."""
    return a_eri.reshape(-1, a_eri.shape[2]).contiguous()


def pack_b(b_eor: Tensor) -> Tensor:
    """[e, o, r] -> PEFT's [o, r*e], in which neighbouring columns belong to neighbouring experts."""
    experts, outputs, rank = b_eor.shape
    return b_eor.permute(1, 2, 0).reshape(outputs, rank * experts).contiguous()


def unpack_a(packed: Tensor, num_experts: int) -> Tensor:
    """PEFT's [e*r, i] -> [e, r, i]."""
    return packed.reshape(num_experts, -1, packed.shape[1]).contiguous()


def unpack_b(packed: Tensor, num_experts: int) -> Tensor:
    """PEFT's [o, r*e] -> [e, o, r]."""
    return packed.reshape(packed.shape[0], -1, num_experts).permute(2, 0, 1).contiguous()


def to_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's file content for adapter parameters under our names (full tensors, not shards).

    Raises:
        AdapterError: a name is not an adapter parameter's.
    """
    stacks = {(found["experts"], f"{found['stack']}_proj") for name in tensors if (found := _STACKED.fullmatch(name))}
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_adapter_name(name):
            raise AdapterError("is not an adapter parameter.", key=name, fix="pass only the parameters that adapter_tensors names.")
        found = _STACKED.fullmatch(name)
        packed = tensor.contiguous() if found is None else pack_a(tensor) if found["side"] == "a" else pack_b(tensor)
        stored[stored_name(name, stacks)] = packed
    return stored


def from_peft(stored: Mapping[str, Tensor], *, stacks: set[tuple[str, str]], num_experts: int) -> dict[str, Tensor]:
    """Adapter parameters under our names from the tensors of a PEFT file.

    Names of the multimodal model (``model.language_model.layers...``) are read as well. Names that are no LoRA tensor's are returned as
    they are, for the caller's comparison with what the model has.

    Args:
        stored: name in the file -> tensor.
        stacks: the adapted stacks, as (name of the experts module, ``gate_up_proj`` or ``down_proj``).
        num_experts: experts of each stack.

    Raises:
        AdapterError: a stack's tensor cannot be divided by the number of experts, or two names of the file mean one parameter.
    """
    modules = {_stored_module(experts, stack, stacks): (experts, stack) for experts, stack in stacks}
    tensors: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        name, value = key, tensor
        if found := _STORED.fullmatch(text_name(key.removeprefix(PEFT_PREFIX))):
            module, side = found["module"], found["side"]
            if module in modules:
                experts, stack = modules[module]
                name = f"{experts}.lora.{_OURS[stack, side]}"
                value = _unpack(tensor, side, num_experts, key)
            else:
                name = f"{module}.lora_{side}.{ADAPTER_NAME}.weight"
        if name in tensors:
            raise AdapterError(f"is stored twice (again as {key}).", key=name, fix="write the adapter again.")
        tensors[name] = value
    return tensors


def stored_modules(keys: Mapping[str, object]) -> set[str]:
    """The modules that a PEFT file adapts, named as in our model; wrappers of stacks keep their ``.base_layer``."""
    found = (_STORED.fullmatch(text_name(key.removeprefix(PEFT_PREFIX))) for key in keys)
    return {match["module"] for match in found if match}


def stored_name(ours: str, stacks: set[tuple[str, str]]) -> str:
    """The name in a PEFT file of one of our adapter parameters."""
    if found := _LINEAR.fullmatch(ours):
        return f"{PEFT_PREFIX}{found['module']}.lora_{found['side']}.weight"
    found = _STACKED.fullmatch(ours)
    assert found is not None, ours
    return f"{PEFT_PREFIX}{_stored_module(found['experts'], found['stack'] + '_proj', stacks)}.lora_{found['side'].upper()}.weight"


def _stored_module(experts: str, stack: str, stacks: set[tuple[str, str]]) -> str:
    both = {(experts, "gate_up_proj"), (experts, "down_proj")} <= stacks
    return f"{experts}.base_layer" if both and stack == "gate_up_proj" else experts


def _unpack(tensor: Tensor, side: str, num_experts: int, key: str) -> Tensor:
    dimension = 0 if side == "A" else 1
    if tensor.ndim != 2 or tensor.shape[dimension] == 0 or tensor.shape[dimension] % num_experts:
        raise AdapterError(
            f"has shape {list(tensor.shape)}, which {num_experts} experts cannot share.",
            key=key,
            fix="load the adapter on the model it was trained on.",
        )
    return unpack_a(tensor, num_experts) if side == "A" else unpack_b(tensor, num_experts)
