"""Finding an adapter of which only one process's share was written: the rest is exactly zero.

A sharded model that is saved without gathering leaves a file of full shapes with one aligned block of values and zeros elsewhere. Training
does not leave that behind, so it is refused. What training does leave behind passes:

- a pair whose B is all zero: an untrained target, or a whole untrained adapter;
- experts that never saw a token: their B, or their row of a router's B, is zero, but they differ from layer to layer and are no aligned
  block of the experts;
- ranks that are zero in A and in B: padding of a smaller adapter.

Pairs are judged component by component: text attention, shared experts, stacks of experts, routers, vision tower, projector, embedding,
head. What is whole in one does not excuse another. Within one component ALL pairs whose B is not zero must be cut alike; a single whole
pair there lets the component pass. With one number n of processes (2 or more) and one share k, in every pair the values that are not zero
lie in share k of n of: the rows of B (outputs); the ranks of one of A and B while the other has more; the experts of A while B has more;
or, in at least two layers that together fill it, the experts of B (of a router its rows).

Modules trained whole and DoRA's magnitudes are judged one by one: share k of n (n up to 8) of the rows is zero and not so in the base; with
n = 1 everything is. Where the base's values are not known they count as not zero.
Exercise it: ``pytest tests/ms4_train/adapters/test_half_saved.py``.

Not covered: shares of the inputs, so of an embedding's tokens, whose columns fill as tokens are seen; two shares of one file mixed; vLLM's
fused pairs before they are split.

Shape suffixes: e experts (1 for a linear layer), r rank, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ms4_train.adapters.adaptable import base_module
from ms4_train.adapters.names import adapted_name
from ms4_train.adapters.peft_format import ROUTER_END, is_vision_name
from ms4_train.adapters.vllm_form import FUSED

_STACKS, _ROUTERS = "the routed experts", "the routers"
_TEXT_PARTS = {
    ".self_attn.": "the text attention",
    ".mlp.shared_experts.": "the shared experts",
    ".mlp.experts.": _STACKS,
    f"{ROUTER_END}.": _ROUTERS,
}
_MOST_PARTS = 8
"""A zero part of a whole tensor is told from zeros by chance down to an eighth of its rows."""
_COMPARABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Occupancy:
    """Where the values of one pair are not zero.

    Attributes:
        name: of the adapted module or stack.
        rows_o: rows of B.
        ranks_a: ranks in A.
        ranks_b: ranks in B.
        experts_a: experts in A; one element for a linear layer.
        experts_b: experts in B, likewise.
    """

    name: str
    rows_o: Tensor
    ranks_a: Tensor
    ranks_b: Tensor
    experts_a: Tensor
    experts_b: Tensor


@dataclass(frozen=True)
class LostShare:
    """What is wrong with a half-saved adapter: along ``axis`` only share ``share`` (from 0) of ``processes`` holds values.

    Attributes:
        name: of an example among the parameters.
        where: the tensors it is said of.
        is_kept: whether the share is what is left; else it is what is lost.
    """

    axis: str
    processes: int
    share: int
    name: str
    where: str
    is_kept: bool = True

    @property
    def message(self) -> str:
        """One sentence for an error."""
        part = f"part {self.share + 1} of {self.processes}"
        if self.is_kept:
            return f"is half-saved: of the {self.axis} of every tensor of {self.where} only {part} holds values, the rest is exactly zero."
        part = f"{part} of the {self.axis}" if self.processes > 1 else "every value"
        return f"is half-saved: {part} of {self.where} is exactly zero."


HALF_SAVED_FIX = "save it again with the parameters of all processes gathered; the lost values are not in this file."


def occupancy(name: str, a_eri: Tensor, b_eor: Tensor) -> Occupancy | None:
    """Where a pair is not zero; None where B is all zero, which says nothing."""
    is_b_eor = b_eor != 0
    if not bool(is_b_eor.any()):
        return None
    is_a_er, is_b_er = (a_eri != 0).any(2), is_b_eor.any(1)
    return Occupancy(
        name,
        rows_o=is_b_eor.any(2).any(0),
        ranks_a=is_a_er.any(0),
        ranks_b=is_b_er.any(0),
        experts_a=is_a_er.any(1),
        experts_b=is_b_er.any(1),
    )


def find_lost_share(tensors: Mapping[str, Tensor], model: nn.Module | None = None) -> LostShare | None:
    """What is wrong with a half-saved adapter; None for a sound one.

    Args:
        tensors: its parameters under our names; stacks may be packed as in a file, only their outputs are judged then.
        model: the base, for what is zero there already; None, or values on the meta device, are not known.
    """
    components: dict[str, list[Occupancy]] = {}
    for name, tensor in tensors.items():
        if ".modules_to_save." in name or ".lora_magnitude_vector." in name:
            lost = _lost_rows(name, tensor, None if model is None else _base_value(model, name))
            if lost is not None:
                return lost
            continue
        other = _other_side(name)
        if other is None or other not in tensors or FUSED in name:
            continue
        component = component_of(name)
        where = _pair_occupancy(name, component, tensor, tensors[other])
        if where is not None:
            components.setdefault(component, []).append(where)
    shares = (lost_share(found, component) for component, found in components.items())
    return next((share for share in shares if share is not None), None)


def component_of(name: str) -> str:
    """The component, in words, that a parameter of an adapter changes; an embedding, the head and any other module are one each."""
    if is_vision_name(name):
        return "the vision tower" if name.startswith("vision_tower.") else "the projector"
    return next((words for part, words in _TEXT_PARTS.items() if part in name), None) or adapted_name(name)


def _other_side(name: str) -> str | None:
    """The name of B for the name of A; None for any other parameter."""
    for side in (".lora_A.", ".lora_embedding_A."):
        if side in name:
            return name.replace(side, side.replace("_A.", "_B."))
    ends = {"gate_up_a_erd": "gate_up_b_eir", "down_a_ern": "down_b_edr"}
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.{ends[leaf]}" if leaf in ends else None


def _pair_occupancy(name: str, component: str, a: Tensor, b: Tensor) -> Occupancy | None:
    """Where a pair is not zero; None for a misshapen one too, which is refused for that elsewhere."""
    if a.ndim != b.ndim or a.ndim not in (2, 3) or a.shape[-2] != b.shape[-1] or (a.ndim == 3 and len(a) != len(b)):
        return None
    if a.ndim == 3:
        return occupancy(name, a, b)
    if component == _STACKS:  # packed: ranks and experts share an axis
        return occupancy(name, a[None, :1], b.any(1, keepdim=True)[None])
    if component == _ROUTERS:  # its outputs are experts, and those no token reaches get no gradient
        return occupancy(name, a.expand(len(b), *a.shape), b[:, None])
    return occupancy(name, a[None], b[None])


def _lost_rows(name: str, tensor: Tensor, base: Tensor | None) -> LostShare | None:
    """The largest aligned part of a tensor's rows that is zero and not so in ``base``; None where there is none."""
    if tensor.ndim == 0 or tensor.numel() == 0:
        return None
    axis = "magnitudes" if ".lora_magnitude_vector." in name else "rows"
    is_filled = _filled_rows(tensor)
    rows = len(is_filled)
    if base is not None and len(base) != rows:  # one process's share of it
        base = None
    for processes in range(1, _MOST_PARTS + 1):
        width = -(-rows // processes)
        for share, first in enumerate(range(0, rows, width)):
            part = slice(first, first + width)
            size = len(is_filled[part])
            if size * _MOST_PARTS < rows or bool(is_filled[part].any()):
                continue
            if base is None or bool(_filled_rows(base[part]).any()):
                return LostShare(axis, processes, share, name, adapted_name(name), is_kept=False)
    return None


def _filled_rows(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(len(tensor), -1).any(1)


def _base_value(model: nn.Module, name: str) -> Tensor | None:
    """The base's weight behind a module trained whole, or the one whose rows a magnitude measures; None where it is not known."""
    module = base_module(model.get_submodule(adapted_name(name)))
    leaf = name.partition(".modules_to_save.")[2].partition(".")[2] or "weight"
    value = dict(module.named_parameters()).get(leaf)
    return None if value is None or value.is_meta or value.dtype not in _COMPARABLE else value


def lost_share(found: Iterable[Occupancy], component: str) -> LostShare | None:
    """The share that a half-saved component consists of; None for a sound one.

    Args:
        found: of all its pairs.
        component: its name in an error.
    """
    pairs = list(found)
    if not pairs:
        return None
    shares = (
        _common_share("outputs", pairs, [pair.rows_o for pair in pairs]),
        _one_sided("ranks in lora_B", pairs, [pair.ranks_b for pair in pairs], [pair.ranks_a for pair in pairs]),
        _one_sided("ranks in lora_A", pairs, [pair.ranks_a for pair in pairs], [pair.ranks_b for pair in pairs]),
        _one_sided("experts in lora_A", pairs, [pair.experts_a for pair in pairs], [pair.experts_b for pair in pairs]),
        _lost_experts(pairs),
    )
    lost = next((share for share in shares if share is not None), None)
    return None if lost is None else replace(lost, where=component)


def _one_sided(axis: str, pairs: Sequence[Occupancy], masks: Sequence[Tensor], others: Sequence[Tensor]) -> LostShare | None:
    """A share on one side of each pair while the other side has values outside it; zero on both sides is padding."""
    if not all(bool((other & ~mask).any()) for mask, other in zip(masks, others, strict=True)):
        return None
    return _common_share(axis, pairs, masks)


def _lost_experts(pairs: Sequence[Occupancy]) -> LostShare | None:
    """A share of the experts; it must be filled, by layers together, or experts that few tokens reach would look like one."""
    layers = {pair.name.partition(".mlp.")[0] for pair in pairs}
    if len(layers) < 2 or len({len(pair.experts_b) for pair in pairs}) != 1:
        return None
    used_e = torch.stack([pair.experts_b for pair in pairs]).any(0)
    share = _common_share("experts", pairs, [used_e])
    return share if share is not None and int(used_e.sum()) == -(-len(used_e) // share.processes) else None


def _common_share(axis: str, pairs: Sequence[Occupancy], masks: Sequence[Tensor]) -> LostShare | None:
    """The (n, k) with the largest n for which every mask is inside share k of n, or None."""
    spans = []
    for mask in masks:
        places = mask.nonzero()
        if len(mask) < 2 or not len(places):
            return None
        spans.append((len(mask), int(places[0]), int(places[-1])))
    # A share is at least as wide as the span it holds, so a sound adapter, whose spans are whole, leaves nothing to try.
    most = min(size // max(last - first, 1) for size, first, last in spans)
    for processes in range(most, 1, -1):
        shares = {_share(processes, *span) for span in spans}
        if len(shares) == 1 and None not in shares:
            share = shares.pop()
            assert share is not None
            filled = max(-(-size // -(-size // processes)) for size, _, _ in spans)  # more processes than shares would stay empty
            return LostShare(axis, filled, share, pairs[0].name, pairs[0].name)
    return None


def _share(processes: int, size: int, first: int, last: int) -> int | None:
    """Which of ``processes`` aligned shares holds ``first`` to ``last``; None where it takes more than one."""
    width = -(-size // processes)
    return first // width if first // width == last // width else None
