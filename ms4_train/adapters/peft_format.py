"""Our adapter parameters <-> the tensors of a PEFT adapter file, both ways and exactly.

| kind | our parameters, of adapter ``default`` | in the file, behind ``base_model.model.`` |
|---|---|---|
| linear layer, router | ``X.lora_A.default.weight`` [r, i], ``X.lora_B.default.weight`` [o, r] | ``X.lora_A.weight``, ``X.lora_B.weight`` |
| DoRA's magnitude | ``X.lora_magnitude_vector.default.weight`` [o] | ``X.lora_magnitude_vector`` |
| embedding | ``X.lora_embedding_A.default`` [r, tokens], ``X.lora_embedding_B.default`` [width, r] | the same without ``default`` |
| stack of experts | ``X.mlp.experts.lora.gate_up_a_erd`` and so on | ``X.mlp.experts.lora_A.weight`` [r*e, i] and so on |
| module trained whole | ``X.modules_to_save.default.weight`` | ``X.weight`` |

PEFT wraps one stack per wrapper and nests wrappers: with both stacks of a layer adapted, ``down_proj`` is the outer one
(``experts.lora_A``) and ``gate_up_proj`` the inner (``experts.base_layer.lora_A``); a single adapted stack is the outer one. How a stack's
pair is packed is ``stack_layout``'s subject. A whole model is written under the names of transformers' classes in memory, which are
``model.language_model.layers...``, ``model.vision_tower...``, ``model.multi_modal_projector...`` and ``lm_head``, a text model under its
own; both are read on both. Exercise it: ``pytest tests/ms4_train/adapters/test_peft_format.py``.

Shape suffixes: e experts, r rank, i inputs, o outputs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ms4_train.adapters.names import DEFAULT_ADAPTER
from ms4_train.adapters.stack_layout import StackLayout, exchange, pack_a, pack_b, unpack_a, unpack_b
from ms4_train.errors import AdapterError
from ms4_train.weights.layouts.names import text_name

PEFT_PREFIX = "base_model.model."
ROUTER_END = ".mlp.gate"
VISION_PARTS = ("vision_tower.", "multi_modal_projector.")
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<adapter>[^.]+)\.weight")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector\.(?P<adapter>[^.]+)\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])\.(?P<adapter>[^.]+)")
_WHOLE = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>.+)")
_STACKED = re.compile(r"(?P<experts>.+\.mlp\.experts)\.lora\.(?P<stack>gate_up|down)_(?P<side>[ab])_\w{3}")
_STORED = re.compile(r"(?P<module>.+)\.(?P<leaf>lora_(?P<side>[AB])\.weight|lora_magnitude_vector(?:\.weight)?|lora_embedding_[AB])")
_OURS = {
    ("gate_up_proj", "A"): "gate_up_a_erd",
    ("gate_up_proj", "B"): "gate_up_b_eir",
    ("down_proj", "A"): "down_a_ern",
    ("down_proj", "B"): "down_b_edr",
}


def is_adapter_name(name: str) -> bool:
    """Whether one of our parameter names is an adapter's."""
    return any(pattern.fullmatch(name) for pattern in (_LINEAR, _STACKED, _EMBEDDING, _MAGNITUDE, _WHOLE))


def own_name(stored: str) -> str:
    """A module's or tensor's name in a PEFT file -> its name here, whichever class it was saved from."""
    name = stored.removeprefix(PEFT_PREFIX)
    inner = name.removeprefix("model.")
    return inner if is_vision_name(inner) else text_name(name)


def outer_name(ours: str, *, whole_model: bool) -> str:
    """The name of one of our modules in transformers' text model or, with ``whole_model``, in its multimodal one."""
    if not whole_model:
        return ours
    if is_vision_name(ours):
        return f"model.{ours}"
    return f"model.language_model.{ours.removeprefix('model.')}" if ours.startswith("model.") else ours


def is_vision_name(ours: str) -> bool:
    """Whether one of our names, of a tensor or a module, belongs to the tower or the projector."""
    return f"{ours}.".startswith(VISION_PARTS)


def adapted_stacks(names: Iterable[str]) -> set[tuple[str, str]]:
    """The stacks that adapter parameters change, as (name of the experts module, ``gate_up_proj`` or ``down_proj``)."""
    return {(found["experts"], f"{found['stack']}_proj") for name in names if (found := _STACKED.fullmatch(name))}


@dataclass(frozen=True)
class AdaptedParts:
    """What the parameters of an adapter change, by our names.

    Attributes:
        ranks: linear layer or embedding by its module, router and stack by the parameter -> rank.
        parameters: those of ``ranks`` that PEFT targets as parameters: stacks and routers.
        whole: modules trained whole.
    """

    ranks: dict[str, int]
    parameters: list[str]
    whole: list[str]


def changed_part(name: str) -> str | None:
    """What one side of a pair changes: the module, or the parameter that PEFT targets and matches patterns with; None for any other."""
    if found := _STACKED.fullmatch(name):
        return f"{found['experts']}.{found['stack']}_proj"
    if found := _LINEAR.fullmatch(name) or _EMBEDDING.fullmatch(name):
        return f"{found['module']}.weight" if found["module"].endswith(ROUTER_END) else found["module"]
    return None


def adapted_parts(tensors: Mapping[str, Tensor]) -> AdaptedParts:
    """What adapter parameters change, in their order."""
    ranks: dict[str, int] = {}
    whole: dict[str, None] = {}
    for name, tensor in tensors.items():
        part = changed_part(name)
        if part is not None and (".lora_A." in name or ".lora_embedding_A." in name or "_a_" in name.rpartition(".")[2]):
            ranks[part] = tensor.shape[-2]
        elif found := _WHOLE.fullmatch(name):
            whole[found["module"]] = None
    parameters = [part for part in ranks if part.endswith((f"{ROUTER_END}.weight", ".experts.gate_up_proj", ".experts.down_proj"))]
    return AdaptedParts(ranks, parameters, list(whole))


def to_peft(tensors: Mapping[str, Tensor], *, whole_model: bool = False) -> dict[str, Tensor]:
    """PEFT's file content for adapter parameters under our names (full tensors, not shards).

    Args:
        tensors: of one adapter.
        whole_model: the names of the multimodal model; set where the model has a vision tower.

    Raises:
        AdapterError: a name is not an adapter parameter's.
    """
    stacks = adapted_stacks(tensors)
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_adapter_name(name):
            raise AdapterError("is not an adapter parameter.", key=name, fix="pass only the parameters that adapter_tensors names.")
        found = _STACKED.fullmatch(name)
        packed = tensor.contiguous() if found is None else pack_a(tensor) if found["side"] == "a" else pack_b(tensor)
        stored[stored_name(name, stacks, whole_model=whole_model)] = packed
    return stored


def from_peft(
    stored: Mapping[str, Tensor],
    *,
    stacks: set[tuple[str, str]],
    num_experts: int,
    whole: Collection[str] = (),
    layout: StackLayout = StackLayout.NEW,
) -> dict[str, Tensor]:
    """Adapter parameters under our names from the tensors of a PEFT file.

    Names that are no tensor of an adapter are returned as they are, for the caller's comparison with what the model has.

    Args:
        stored: name in the file -> tensor.
        stacks: the adapted stacks, as (name of the experts module, ``gate_up_proj`` or ``down_proj``).
        num_experts: experts of each stack.
        whole: the modules that were trained whole (``modules_to_save``).
        layout: how the stacks are stored.

    Raises:
        AdapterError: a stack's tensor cannot be divided by the number of experts, or two names of the file mean one parameter.
    """
    modules = {_stored_module(experts, stack, stacks): (experts, stack) for experts, stack in stacks}
    tensors: dict[str, Tensor] = {}
    pairs: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name = parameter_name(key, whole)
        found = _STORED.fullmatch(own_name(key))
        if found and found["module"] in modules and found["side"]:
            stack = modules[found["module"]]
            name = stack_parameter(*stack, found["side"])
            pairs.setdefault(stack, {})[found["side"]] = _unpack(tensor, found["side"], num_experts, key)
        if name in tensors:
            raise AdapterError(f"is stored twice (again as {key}).", key=name, fix="write the adapter again.")
        tensors[name] = tensor
    for stack, pair in pairs.items():
        if layout is StackLayout.OLD and len(pair) == 2:
            pair = dict(zip("AB", exchange(pair["A"], pair["B"]), strict=True))
        tensors |= {stack_parameter(*stack, side): value for side, value in pair.items()}
    return tensors


def parameter_name(key: str, whole: Collection[str] = ()) -> str:
    """Our name of a tensor in a file that is not a stack's; a name of no adapter is returned as it is."""
    name = own_name(key)
    found = _STORED.fullmatch(name)
    if found is None:
        owners = [module for module in whole if name.startswith(f"{module}.")]
        if not owners:
            return key
        owner = max(owners, key=len)
        return f"{owner}.modules_to_save.{DEFAULT_ADAPTER}.{name.removeprefix(owner + '.')}"
    leaf = found["leaf"].removesuffix(".weight")
    tail = "" if leaf.startswith("lora_embedding_") else ".weight"
    return f"{found['module']}.{leaf}.{DEFAULT_ADAPTER}{tail}"


def stack_parameter(experts: str, stack: str, side: str) -> str:
    """Our name of side ``A`` or ``B`` of a stack's pair."""
    return f"{experts}.lora.{_OURS[stack, side]}"


def stored_modules(keys: Iterable[str]) -> set[str]:
    """The modules that a PEFT file adapts, named as in our model; wrappers of stacks keep their ``.base_layer``."""
    found = (_STORED.fullmatch(own_name(key)) for key in keys)
    return {match["module"] for match in found if match}


def other_tensors(keys: Iterable[str]) -> list[str]:
    """The tensors of a PEFT file that belong to no low-rank pair: of modules trained whole, copies of base weights."""
    return [key for key in keys if _STORED.fullmatch(own_name(key)) is None]


def stored_name(ours: str, stacks: set[tuple[str, str]], *, whole_model: bool = False) -> str:
    """The name in a PEFT file of one of our adapter parameters."""
    if found := _STACKED.fullmatch(ours):
        module, leaf = _stored_module(found["experts"], found["stack"] + "_proj", stacks), f"lora_{found['side'].upper()}.weight"
    elif found := _LINEAR.fullmatch(ours):
        module, leaf = found["module"], f"lora_{found['side']}.weight"
    elif found := _MAGNITUDE.fullmatch(ours):
        module, leaf = found["module"], "lora_magnitude_vector"
    elif found := _EMBEDDING.fullmatch(ours):
        module, leaf = found["module"], f"lora_embedding_{found['side']}"
    else:
        found = _WHOLE.fullmatch(ours)
        assert found is not None, ours
        module, leaf = found["module"], found["leaf"]
    return f"{PEFT_PREFIX}{outer_name(module, whole_model=whole_model)}.{leaf}"


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
