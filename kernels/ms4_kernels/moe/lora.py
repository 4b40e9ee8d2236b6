"""The low-rank update of stacked expert weights.

Exercise it: ``pytest tests/kernels/ms4_kernels/moe``.

Shape suffixes: e experts, r LoRA rank, d hidden, n expert intermediate, i = 2n (gate rows, then up rows).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ExpertLora:
    """Adds ``scale * B_e @ A_e`` to each expert's matrix, without ever forming that product.

    Either pair may be absent (None, None). ``scale`` is alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.
    Several adapters, of which each token takes one: every stack has a further leading axis [L, E, ...]. Adapters of smaller rank are filled
    up with zeros, and factors that differ are multiplied into B by the caller.
    """

    gate_up_a_erd: Tensor | None = None
    gate_up_b_eir: Tensor | None = None
    down_a_ern: Tensor | None = None
    down_b_edr: Tensor | None = None
    gate_up_scale: float = 1.0
    down_scale: float = 1.0

    def __post_init__(self) -> None:
        if (self.gate_up_a_erd is None) != (self.gate_up_b_eir is None):
            raise ValueError("gate_up_a_erd and gate_up_b_eir must be given together")
        if (self.down_a_ern is None) != (self.down_b_edr is None):
            raise ValueError("down_a_ern and down_b_edr must be given together")

    @property
    def stacks(self) -> tuple[Tensor | None, ...]:
        """A and B of gate-up, A and B of down."""
        return (self.gate_up_a_erd, self.gate_up_b_eir, self.down_a_ern, self.down_b_edr)

    @property
    def num_adapters(self) -> int:
        """L of stacks with a leading adapter axis; 0 for a single adapter without one."""
        stack = self.gate_up_a_erd if self.gate_up_a_erd is not None else self.down_a_ern
        return stack.shape[0] if stack is not None and stack.ndim == 4 else 0

    def adapter(self, index: int) -> ExpertLora:
        """One of several adapters; views."""
        parts = [None if stack is None else stack[index] for stack in self.stacks]
        return ExpertLora(*parts, gate_up_scale=self.gate_up_scale, down_scale=self.down_scale)
