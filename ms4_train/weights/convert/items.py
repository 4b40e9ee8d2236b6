"""The work of a conversion as a list: which pieces are copied, cast, quantised or fused, and which bytes each item writes.

An item is one piece, or the gate and up matrices of an expert where they come to share a scale. Its number means the same in every run
with the same source and arguments. Exercise it: ``pytest tests/ms4_train/weights/convert/test_items.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ms4_train.weights.convert.plan import Extent, FolderPlan
from ms4_train.weights.convert.target import Target
from ms4_train.weights.layouts.pieces import Part, Piece
from ms4_train.weights.layouts.tables import Place
from ms4_train.weights.reading.checkpoint import DTYPES, Checkpoint

Action = Literal["copy", "cast", "quantise", "fuse"]
"""``copy``: the bytes as they are. ``cast``: values in another type or order, dequantised if need be. ``quantise``: to FP8 under a scale
of its own. ``fuse``: two matrices to FP8, each under its own scale, then both to the larger one."""


@dataclass(frozen=True)
class Item:
    """A unit of work.

    Attributes:
        pieces: one, or an expert's gate and up.
        action: what happens to them.
        values: where the values or codes of each piece go.
        scale: where the weight scale goes if it is made on the way; None where it is known before.
    """

    number: int
    pieces: tuple[Piece, ...]
    action: Action
    values: tuple[Extent, ...]
    scale: Extent | None = None

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Everything that it writes."""
        return self.values if self.scale is None else (*self.values, self.scale)

    @property
    def num_bytes(self) -> int:
        """Bytes that it writes."""
        return sum(extent.num_bytes for extent in self.extents)


def make_items(source: Checkpoint, target: Target, plan: FolderPlan) -> list[Item]:
    """All items, in the order of the target's bytes."""
    pieces = plan.table.pieces()
    found: list[tuple[tuple[Piece, ...], Action]] = []
    for piece in pieces.values():
        if not _shares_scale(plan, piece):
            found.append(((piece,), _action(source, target, piece)))
        elif piece.matrix == "gate_proj":
            pair = (piece, pieces[piece.name.replace("gate_proj", "up_proj")])
            if _is_fused_already(source, target, pair):
                found.append(((piece,), "copy"))
                found.append(((pair[1],), "copy"))
            else:
                found.append((pair, "fuse"))
    placed: list[tuple[tuple[Piece, ...], Action, tuple[Extent, ...]]] = [
        (group, action, tuple(plan.values(piece) for piece in group)) for group, action in found
    ]
    placed.sort(key=lambda entry: (entry[2][0].file, entry[2][0].start))
    return [
        Item(number, group, action, values, _made_scale(target, plan, group[0])) for number, (group, action, values) in enumerate(placed)
    ]


def _shares_scale(plan: FolderPlan, piece: Piece) -> bool:
    return plan.table.layout.is_hf and plan.table.layout.encoding == "fp8" and piece.part is Part.EXPERT and piece.matrix != "down_proj"


def _is_fused_already(source: Checkpoint, target: Target, pair: tuple[Piece, ...]) -> bool:
    """Whether the codes of gate and up are there under one scale, so that fusing them would change nothing."""
    if target.is_fitted or source.layout.encoding != "fp8":
        return False
    gate, up = (target.scales[piece.name].weight for piece in pair)
    return bool(gate == up)


def _action(source: Checkpoint, target: Target, piece: Piece) -> Action:
    place, found = target.table.place(piece), source.place(piece)
    if place.encoding == "plain":
        is_same = found.encoding == "plain" and DTYPES[source.stored[found.values].info.dtype] == target.dtype(piece)
        return "copy" if is_same and place.is_permuted == found.is_permuted else "cast"
    return "copy" if found.encoding == "fp8" and not target.is_fitted else "quantise"


def _made_scale(target: Target, plan: FolderPlan, piece: Piece) -> Extent | None:
    place = target.table.place(piece)
    if not target.is_fitted or place.encoding != "fp8":
        return None
    return plan.scalar(_named(place), place.expert)


def _named(place: Place) -> str:
    assert place.weight_scale is not None
    return place.weight_scale


def source_span(source: Checkpoint, piece: Piece) -> tuple[str, int, int]:
    """Name of the stored tensor and bytes [start, stop) in its file of a piece that is copied as it is."""
    place = source.place(piece)
    span = source.span(piece)
    if span is not None:
        return place.values, span[1], span[2]
    info = source.stored[place.values].info  # rows in native order on both sides
    return place.values, info.start, info.stop


def known_scalars(target: Target, plan: FolderPlan) -> Iterator[tuple[str, Tensor]]:
    """Stored name and content of every tensor of scales that is known before any weight is read, in the type of the plan.

    Scales of a stack of gate and up are the larger of the two, as transformers' converter has it.
    """
    entries: dict[str, dict[int, list[Tensor]]] = {}
    for piece in plan.table.pieces().values():
        place = plan.table.place(piece)
        if place.encoding != "fp8":
            continue
        scales = target.scales[piece.name]
        named = [(place.activation_scale, scales.activation)] + ([] if target.is_fitted else [(place.weight_scale, scales.weight)])
        for name, value in named:
            if name is not None and value is not None:
                entries.setdefault(name, {}).setdefault(place.expert or 0, []).append(value)
    for name, experts in entries.items():
        spec = plan.specs[name]
        yield name, _stacked([experts[expert] for expert in sorted(experts)], DTYPES[spec.dtype]).reshape(spec.shape)


def _stacked(groups: Sequence[list[Tensor]], dtype: torch.dtype) -> Tensor:
    return torch.stack([torch.stack([value.to(dtype) for value in group]).amax() for group in groups])
