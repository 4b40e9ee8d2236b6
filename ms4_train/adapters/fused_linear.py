"""PEFT's LoRA layer, with its plain case computed by one fused operation on a CPU: fewer passes over the activations.

The layer stays PEFT's in everything else: parameters, names, files, merging. Whatever is not plain (dropout, DoRA, several or switched-off
adapters, a quantised base, another device or type) takes PEFT's own forward.
Exercise it: ``pytest tests/ms4_train/adapters/test_fused_linear.py``.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ms4_kernels.native.linear import lora_linear, serves_lora
from ms4_train.adapters.peft_format import ADAPTER_NAME
from ms4_train.model.linear import Linear as PlainLinear

if TYPE_CHECKING:
    from peft.tuners.lora import Linear


def fuse(layer: Linear) -> None:
    """Give one of PEFT's LoRA layers the fused forward, in place."""
    if type(layer) is _peft_linear():
        layer.__class__ = _fused_class()


def is_plain(layer: Linear) -> bool:
    """Whether the layer computes ``x W^T + scale (x A^T) B^T`` over a plain base and nothing else."""
    if layer.active_adapters != [ADAPTER_NAME] or ADAPTER_NAME not in layer.lora_A:
        return False
    dropout = layer.lora_dropout[ADAPTER_NAME]
    return (
        not layer.disable_adapters
        and not layer.merged
        and ADAPTER_NAME not in layer.lora_variant
        and (isinstance(dropout, nn.Identity) or not dropout.training)
        and isinstance(layer.base_layer, PlainLinear)
        and layer.lora_A[ADAPTER_NAME].bias is None
        and layer.lora_B[ADAPTER_NAME].bias is None
    )


@cache
def _peft_linear() -> type[Linear]:
    from peft.tuners.lora import Linear

    return Linear


@cache
def _fused_class() -> type[Linear]:
    class FusedLoraLinear(_peft_linear()):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """As PEFT's, or fused where the layer is plain and the compiled kernels serve."""
            if args or kwargs or not is_plain(self):
                return super().forward(x, *args, **kwargs)
            weight_oi, a_ri, b_or = self.base_layer.weight, self.lora_A[ADAPTER_NAME].weight, self.lora_B[ADAPTER_NAME].weight
            if not serves_lora(x, weight_oi, a_ri, b_or):  # type: ignore[arg-type]
                return super().forward(x)
            return lora_linear(x, weight_oi, a_ri, b_or, self.scaling[ADAPTER_NAME])  # type: ignore[arg-type]

    return FusedLoraLinear
