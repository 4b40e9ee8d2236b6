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
