"""Folding an adapter into the weights it changes, for export. Exercise it: ``pytest tests/ms4_train/adapters/test_merge.py``."""

from __future__ import annotations

import torch
from torch import nn

from ms4_train.adapters.attach import adapted_modules, adapter_parameters, detach
from ms4_train.adapters.expert_lora import StackedLora, add_product
from ms4_train.errors import AdapterError
from ms4_train.model.quantised import is_quantised


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold the adapter into the base weights in place and remove it; names are then those of a model without one.

    Products and sums are computed in fp32 and rounded once to the type of the weights.

    Raises:
        AdapterError: the model has no adapter, or its weights are quantised.
    """
    if not adapter_parameters(model):
        raise AdapterError("the model has no adapter to merge.", fix="attach or load one first.")
    if is_quantised(model):
        raise AdapterError(
            "an adapter cannot be merged into quantised weights: their codes are too coarse to hold it.",
            fix="load the model dequantised and merge there.",
        )
    for name, module in adapted_modules(model):
        if isinstance(module, StackedLora):
            experts = model.get_submodule(name.rpartition(".")[0])
            for stack, (a_eri, b_eor) in module.pairs().items():
                add_product(getattr(experts, stack), a_eri, b_eor, module.scale)
        else:
            add_product(module.base_layer.weight[None], module.a_ri[None], module.b_or[None], module.scale)
    detach(model)
