"""LoRA on a router, whose weight is a parameter of its own and no linear layer: low-rank logits beside the router's, in fp32 as they are.

PEFT reaches it as ``target_parameters: [mlp.gate.weight]``; names and shapes are those of its ``ParamWrapper`` on a matrix.
Exercise it: ``pytest tests/ms4_train/adapters/test_router_lora.py``.

Shape suffixes: t tokens, d hidden, e experts, r rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ms4_train.adapters.adapted import AdaptedModule, wide
from ms4_train.adapters.row_parts import row_parts
from ms4_train.model.moe import Mistral4Router


class _WideLinear(nn.Linear):
    """A linear layer that computes in the type of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


class LoraRouter(AdaptedModule):
    """A router with adapters in its place; parameters ``lora_A.NAME.weight`` [r, d] and ``lora_B.NAME.weight`` [e, r]."""

    base_layer: Mistral4Router

    def __init__(self, base: Mistral4Router) -> None:
        super().__init__(base)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()

    def add(self, name: str, *, rank: int, scale: float) -> None:
        """Add an adapter that does not act yet."""
        weight_ed = self.base_layer.weight
        like = {"dtype": weight_ed.dtype, "device": weight_ed.device}
        self.lora_A[name] = _WideLinear(weight_ed.shape[1], rank, bias=False, **like)
        self.lora_B[name] = _WideLinear(rank, weight_ed.shape[0], bias=False, **like)
        nn.init.zeros_(self.lora_B[name].weight)  # type: ignore[arg-type]
        self.scales[name] = scale

    def remove(self, name: str) -> None:
        """Take an adapter away."""
        del self.lora_A[name], self.lora_B[name]
        self.forget(name)

    def forward(self, hidden_td: Tensor) -> tuple[Tensor, Tensor]:
        """Return (weights_tk, expert_ids_tk) as the router does."""
        parts = row_parts(self.names_of, hidden_td.shape[0])
        if not any(part.names for part in parts):
            return self.base_layer(hidden_td)
        wide_td = hidden_td.to(torch.promote_types(hidden_td.dtype, torch.float32))
        return self.base_layer(hidden_td, torch.cat([self._added(wide_td[start:stop], names) for names, start, stop in parts]))

    def _added(self, wide_td: Tensor, names: tuple[str, ...]) -> Tensor:
        """What these adapters add to the logits, [t, e]."""
        total_te: Tensor | None = None
        for name in names:
            part_te = self.lora_B[name](self.lora_A[name](wide_td)) * self.scales[name]
            total_te = part_te if total_te is None else total_te + part_te
        return wide_td.new_zeros(wide_td.shape[0], self.base_layer.weight.shape[0]) if total_te is None else total_te

    def changed_weight(self) -> Tensor:
        """The router's weight with the acting adapters, at least fp32."""
        total_ed = wide(self.base_layer.weight)
        for name in self.acting:
            total_ed = total_ed + self.scales[name] * wide(self.lora_B[name].weight) @ wide(self.lora_A[name].weight)  # type: ignore[arg-type]
        return total_ed

    def extra_repr(self) -> str:
        """Adapters with scale."""
        return ", ".join(f"{name}: scale={scale:g}" for name, scale in self.scales.items())
