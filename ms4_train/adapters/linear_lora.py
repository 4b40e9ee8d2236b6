"""LoRA on a linear layer: ``x W^T + scale * B A dropout(x)``, fused into one operation on a CPU where nothing stands between the products.

Parameters carry PEFT's names and shapes, and values are equal to PEFT's layer's; PEFT itself is not imported for training, because it
brings all of transformers with it: 190 MB of memory and seconds of start.
Exercise it: ``pytest tests/ms4_train/adapters/test_linear_lora.py``.

Shape suffixes: o outputs, i inputs, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ms4_kernels.native.linear import lora_linear, serves_lora
from ms4_train.adapters.adapted import AdaptedModule, wide
from ms4_train.adapters.dora import Magnitude, row_lengths
from ms4_train.adapters.names import DEFAULT_ADAPTER
from ms4_train.adapters.row_parts import row_parts
from ms4_train.model.linear import Linear
from ms4_train.model.quantised import QuantisedLinear

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class LoraLinear(AdaptedModule):
    """A linear layer with adapters in its place.

    Parameters ``base_layer.weight`` and, for each adapter, ``lora_A.NAME.weight`` [r, inputs], ``lora_B.NAME.weight`` [outputs, r] and
    with DoRA ``lora_magnitude_vector.NAME.weight`` [outputs]. B is zero, so that an adapter changes nothing before A and B are filled.

    Args:
        base: without bias; may be quantised.
        rank, scale, dropout: of a first adapter, ``default``; without a rank there is none yet.
    """

    base_layer: nn.Linear

    def __init__(self, base: nn.Linear, *, rank: int | None = None, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_magnitude_vector = nn.ModuleDict()
        self.lora_dropout = nn.ModuleDict()
        self.starts: dict[str, tuple[Tensor, Tensor]] = {}
        """A and B as they were taken out of the base weight, by adapter (see ``initialise``)."""
        if rank is not None:
            self.add(DEFAULT_ADAPTER, rank=rank, scale=scale, dropout=dropout)
            self.active = (DEFAULT_ADAPTER,)

    def add(self, name: str, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        """Add an adapter that does not act yet."""
        like = self.base_layer if isinstance(self.base_layer, QuantisedLinear) else self.base_layer.weight
        self.lora_A[name] = nn.Linear(self.base_layer.in_features, rank, bias=False, dtype=like.dtype, device=like.device)
        self.lora_B[name] = self._make_b(rank).to(like.device, like.dtype)
        nn.init.zeros_(self.factors(name)[1])
        self.lora_dropout[name] = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.scales[name] = scale

    def remove(self, name: str) -> None:
        """Take an adapter away; what its start took out of the base weight is given back."""
        self._give_back_start(name)
        for parts in (self.lora_A, self.lora_B, self.lora_dropout, self.lora_magnitude_vector):
            if name in parts:
                del parts[name]
        self.forget(name)

    def add_magnitude(self, name: str) -> None:
        """Make an adapter, whose A and B hold their first values, one of DoRA."""
        self.lora_magnitude_vector[name] = Magnitude(self._row_lengths(name).to(self.base_layer.weight.dtype))

    def give_back_starts(self) -> None:
        """Give the base weight back what the starts of adapters took out of it; equal to what it was up to rounding."""
        for name in list(self.starts):
            self._give_back_start(name)

    @torch.no_grad()
    def _give_back_start(self, name: str) -> None:
        if name in self.starts:
            a_ri, b_or = self.starts.pop(name)
            weight_oi = self.base_layer.weight
            product_oi = wide(b_or).to(weight_oi.device) @ wide(a_ri).to(weight_oi.device)
            weight_oi.copy_(wide(weight_oi) + self.scales[name] * product_oi)

    def factors(self, name: str = DEFAULT_ADAPTER) -> tuple[nn.Parameter, nn.Parameter]:
        """(A, B) of an adapter."""
        return self.lora_A[name].weight, self.lora_B[name].weight  # type: ignore[return-value]

    @property
    def a_ri(self) -> nn.Parameter:
        """A of the first adapter, [r, inputs]."""
        return self.factors(next(iter(self.scales)))[0]

    @property
    def b_or(self) -> nn.Parameter:
        """B of the first adapter, [outputs, r]."""
        return self.factors(next(iter(self.scales)))[1]

    @property
    def scale(self) -> float:
        """Factor of the first adapter."""
        return next(iter(self.scales.values()))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis, with the adapters of each row of the first."""
        parts = row_parts(self.names_of, x.shape[0])
        acting = parts[0].names
        if len(parts) == 1 and len(acting) == 1 and self._is_plain(acting[0]):
            a_ri, b_or = self.factors(acting[0])
            if serves_lora(x, self.base_layer.weight, a_ri, b_or):
                return lora_linear(x, self.base_layer.weight, a_ri, b_or, self.scales[acting[0]])
        y = self.base_layer(x)
        if len(parts) == 1:
            return self._added(x, y, acting)
        return torch.cat([self._added(x[start:stop], y[start:stop], names) for names, start, stop in parts])

    def _added(self, x: Tensor, y: Tensor, names: tuple[str, ...]) -> Tensor:
        """``y``, the base's outputs of ``x``, with what these adapters add."""
        total = y
        for name in names:
            dropout, a = self.lora_dropout[name], self.lora_A[name]
            dropped = dropout(x.to(a.weight.dtype))  # type: ignore[arg-type]
            part = self.lora_B[name](a(dropped)) * self.scales[name]
            if name not in self.lora_magnitude_vector:
                total = total + part
                continue
            ratio_o = self.lora_magnitude_vector[name](self._row_lengths(name)).to(y.dtype)
            base = y if isinstance(dropout, nn.Identity) or not self.training else self.base_layer(dropped)
            total = total + (ratio_o - 1) * base + ratio_o * part
        return total.to(y.dtype)

    def changed_weight(self) -> Tensor:
        """``W`` with the acting adapters, at least fp32."""
        weight_oi = wide(self.base_layer.weight)
        total_oi = weight_oi
        for name in self.acting:
            a_ri, b_or = self.factors(name)
            changed_oi = self.scales[name] * wide(b_or) @ wide(a_ri)
            total_oi = total_oi + changed_oi
            if name in self.lora_magnitude_vector:
                total_oi = self.lora_magnitude_vector[name](self._row_lengths(name))[:, None] * total_oi
        return total_oi

    def _make_b(self, rank: int) -> nn.Linear:
        return nn.Linear(rank, self.base_layer.out_features, bias=False)

    def _row_lengths(self, name: str) -> Tensor:
        return row_lengths(self.base_layer.weight, *self.factors(name), self.scales[name])

    def _is_plain(self, name: str) -> bool:
        """Whether nothing stands between the products: no DoRA or dropout, no base of another kind, no hook that wants to see a call."""
        layers = (self.base_layer, self.lora_A[name], self.lora_B[name])
        is_still = isinstance(self.lora_dropout[name], nn.Identity) or not self.training
        return (
            type(self.base_layer) is Linear
            and is_still
            and name not in self.lora_magnitude_vector
            and not any(getattr(layer, kind) for layer in layers for kind in _HOOKS)
        )

    def extra_repr(self) -> str:
        """Adapters with rank and scale."""
        return ", ".join(f"{name}: rank={self.factors(name)[0].shape[0]}, scale={scale:g}" for name, scale in self.scales.items())
