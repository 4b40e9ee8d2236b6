"""Which of PEFT's two layouts a stack of experts is stored in, and how each is unpacked.

PEFT wraps a stack [e, out, in] as one parameter. From 0.19.1 on its A is [e*r, in] and its B [out, r*e]; up to 0.19.0 inputs and outputs
were exchanged, so A is [e*r, out] and B [in, r*e], and what it calls A belongs to the outputs (read in PEFT 0.18.1, 0.19.0, 0.19.1, 0.20.0
and 0.21.0, ``tuners/lora/layer.py``, class ``ParamWrapper``). In both, A is expert-slowest and B expert-fastest. Only the new one is
written. Where a stack is square, as gate and up of the release are (4096 x 4096), shapes do not tell; another stack of the file that is
not square does, and after that the version that PEFT records since 0.18.0.
Exercise it: ``pytest tests/ms4_train/adapters/test_stack_layout.py``.

Shape suffixes: e experts, r rank, i inputs, o outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor

from ms4_train.errors import AdapterError

FIRST_NEW = (0, 19, 1)


class StackLayout(Enum):
    """How a stack's pair is stored."""

    NEW = "PEFT 0.19.1 and later"
    OLD = "PEFT up to 0.19.0"


@dataclass(frozen=True)
class StackShapes:
    """One stack: its name in the file, its weight's outputs and inputs, and the shapes of the stored A and B."""

    name: str
    outputs: int
    inputs: int
    a: tuple[int, ...]
    b: tuple[int, ...]

    def fits(self, layout: StackLayout) -> bool:
        """Whether the shapes are those of ``layout``."""
        wide = (self.inputs, self.outputs) if layout is StackLayout.NEW else (self.outputs, self.inputs)
        return len(self.a) == len(self.b) == 2 and (self.a[1], self.b[0]) == wide


def find_layout(stacks: list[StackShapes], settings: Mapping[str, Any], *, ours: bool, file: Path) -> StackLayout:
    """The layout of all stacks of a file.

    Args:
        stacks: every adapted stack of the file.
        settings: content of ``adapter_config.json``.
        ours: whether this program wrote the folder; it only ever wrote the new layout.
        file: ``adapter_config.json``, named in errors.

    Raises:
        AdapterError: stacks in both layouts, in the old one although what wrote it knows only the new one, or no telling which.
    """
    recorded = StackLayout.NEW if ours else version_layout(settings.get("peft_version"))
    only = {
        layout: [stack for stack in stacks if stack.fits(layout) and not stack.fits(other)]
        for layout, other in ((StackLayout.NEW, StackLayout.OLD), (StackLayout.OLD, StackLayout.NEW))
    }
    new, old = only[StackLayout.NEW], only[StackLayout.OLD]
    if new and old:
        raise AdapterError(
            f"has the layout of {StackLayout.OLD.value}, but {new[0].name} that of later ones.",
            file=file.parent,
            key=old[0].name,
            fix="write the adapter again with one version of PEFT.",
        )
    if old and recorded is StackLayout.NEW:
        by = "this program wrote it" if ours else f"peft_version is {settings.get('peft_version')}"
        raise AdapterError(
            f"inputs and outputs are exchanged, as {StackLayout.OLD.value} stored them, but {by}.",
            file=file.parent,
            key=old[0].name,
            fix="use the adapter as it was written"
            + ("." if ours else "; if an older PEFT did write it, set peft_version in adapter_config.json to that version."),
        )
    if new or old:
        return StackLayout.NEW if new else StackLayout.OLD
    unclear = [stack for stack in stacks if stack.fits(StackLayout.NEW)]
    if unclear and recorded is None:
        raise AdapterError(
            f"shapes do not tell whether {unclear[0].name} is stored as {StackLayout.OLD.value} did or as later ones do: it is square.",
            file=file,
            key="peft_version",
            fix='set it to the version of PEFT that trained the adapter, such as "0.18.1" or "0.21.0".',
        )
    return recorded or StackLayout.NEW


def version_layout(version: Any) -> StackLayout | None:
    """The layout that a version of PEFT wrote; None for none, an unreadable one, and development versions in which it changed."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)(\.dev)?", version) if isinstance(version, str) else None
    if found is None:
        return None
    number = (int(found[1]), int(found[2]), int(found[3]))
    if found[4] and number == FIRST_NEW:
        return None
    return StackLayout.NEW if number >= FIRST_NEW else StackLayout.OLD


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


def exchange(a_eri: Tensor, b_eor: Tensor) -> tuple[Tensor, Tensor]:
    """An unpacked pair of the old layout -> (A [e, r, i], B [e, o, r]) of the stack itself; it is its own inverse."""
    return b_eor.transpose(1, 2).contiguous(), a_eri.transpose(1, 2).contiguous()
