"""LoRA on a linear layer: ``x W^T + scale * B A dropout(x)``, fused into one operation on a CPU where nothing stands between the products.

Parameters carry PEFT's names and shapes, and values are equal to PEFT's layer's; PEFT itself is not imported for training, because it
brings all of transformers with it: 190 MB of memory and seconds of start.
Exercise it: ``pytest tests/ms4_train/adapters/test_linear_lora.py``.

Not covered: DoRA, several adapters on one layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from ms4_kernels.native.linear import lora_linear, serves_lora
from ms4_train.adapters.peft_format import ADAPTER_NAME
from ms4_train.model.linear import Linear
from ms4_train.model.quantised import QuantisedLinear


class LoraLinear(nn.Module):
    """A linear layer with an adapter in its place.

    Parameters ``base_layer.weight``, ``lora_A.default.weight`` [r, inputs] and ``lora_B.default.weight`` [outputs, r]. A starts uniform in
    +-1/sqrt(inputs) and B at zero, so an untrained adapter changes nothing.

    Args:
        base: without bias; may be quantised.
        rank: r.
        scale: factor of the product.
        dropout: of the adapter's input, in training.
    """

    def __init__(self, base: nn.Linear, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base
        self.scale = scale
        like = base if isinstance(base, QuantisedLinear) else base.weight
        factory = {"dtype": like.dtype, "device": like.device}
        self.lora_A = nn.ModuleDict({ADAPTER_NAME: nn.Linear(base.in_features, rank, bias=False, **factory)})
        self.lora_B = nn.ModuleDict({ADAPTER_NAME: nn.Linear(rank, base.out_features, bias=False, **factory)})
        nn.init.zeros_(self.b_or)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    @property
    def a_ri(self) -> nn.Parameter:
        """A, [r, inputs]."""
        return self.lora_A[ADAPTER_NAME].weight  # type: ignore[return-value]

    @property
    def b_or(self) -> nn.Parameter:
        """B, [outputs, r]."""
        return self.lora_B[ADAPTER_NAME].weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        if self._is_plain() and serves_lora(x, self.base_layer.weight, self.a_ri, self.b_or):
            return lora_linear(x, self.base_layer.weight, self.a_ri, self.b_or, self.scale)
        y = self.base_layer(x)
        low = self.lora_A[ADAPTER_NAME](self.dropout(x.to(self.a_ri.dtype)))
        return (y + self.lora_B[ADAPTER_NAME](low) * self.scale).to(y.dtype)

    def _is_plain(self) -> bool:
        """Whether nothing stands between the products: no dropout, no base of another kind, no hook that wants to see a layer called."""
        layers = (self.base_layer, self.lora_A[ADAPTER_NAME], self.lora_B[ADAPTER_NAME])
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        is_still = isinstance(self.dropout, nn.Identity) or not self.training
        return type(self.base_layer) is Linear and is_still and not any(getattr(layer, kind) for layer in layers for kind in hooks)

    def extra_repr(self) -> str:
        """Rank and scale."""
        return f"rank={self.a_ri.shape[0]}, scale={self.scale:g}"
