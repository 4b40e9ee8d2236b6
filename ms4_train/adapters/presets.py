"""What each named preset matches on a model, and how many parameters an adapter of a rank has there; names and shapes alone are needed.

Exercise it: ``ms4 adapter presets MODEL`` and ``pytest tests/ms4_train/adapters/test_presets.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from ms4_train.adapters.adaptable import adaptable_parts
from ms4_train.adapters.attach import Kind, TargetRow
from ms4_train.adapters.targets import VISION_PREFIXES, find_targets
from ms4_train.config.schema import PRESETS
from ms4_train.errors import AdapterError


@dataclass(frozen=True)
class PresetMatch:
    """A preset on a model: a row for each target, or why it cannot be used."""

    preset: str
    rows: tuple[TargetRow, ...]
    problem: str | None = None

    @property
    def parameters(self) -> int:
        """Of an adapter of the rank asked for."""
        return sum(row.parameters for row in self.rows)


def preset_matches(model: nn.Module, *, rank: int) -> list[PresetMatch]:
    """Every preset on ``model``, which may be on the meta device; ``rank`` is that of all targets."""
    return [_match(model, preset, rank) for preset in PRESETS]


def _match(model: nn.Module, preset: str, rank: int) -> PresetMatch:
    try:
        targets = find_targets(model, *PRESETS[preset])
    except AdapterError as error:
        return PresetMatch(preset, (), f"{error.message} {error.fix or ''}".strip())
    sizes = {name: math.prod(part.shape_a(rank)) + math.prod(part.shape_b(rank)) for name, part in adaptable_parts(model).items()}
    rows: list[TargetRow] = []
    kinds: tuple[tuple[dict[str, list[str]], Kind], ...] = (targets.modules, "linear"), (targets.parameters, "experts")
    for found, kind in kinds:
        for target, names in found.items():
            vision = sum(name.startswith(VISION_PREFIXES) for name in names)
            rows.append(TargetRow(target, kind, len(names), sum(sizes[name] for name in names), vision))
    return PresetMatch(preset, tuple(rows))
