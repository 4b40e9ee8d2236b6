"""Folding adapters into the weights they change, for good or for a while. Exercise it: ``pytest tests/ms4_train/adapters/test_merge.py``.

Products and sums are computed in fp32 and rounded once to the type of the weights; the report says what the rounding cost. Unmerging puts
the weights' own bits back, so nothing drifts however often a model is merged and unmerged; it costs the memory of the changed weights
once more while they are merged.

Shape suffixes: e experts, o outputs, i inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ms4_train.adapters.adapted import AdaptedModule, wide
from ms4_train.adapters.attach import adapted_modules, adapter_names, detach, forget_decode, unmerge_stacks
from ms4_train.adapters.expert_lora import StackedLora
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.errors import AdapterError
from ms4_train.model.quantised import is_quantised


@dataclass
class MergeReport:
    """What rounding merged weights to their type cost, over all of them.

    Attributes:
        weights: matrices and stacks that were changed.
        max_error: largest difference between a written value and the exact one.
        error_squared, change_squared, weight_squared: squared Frobenius norms of that difference, of the change, of the merged weights.
    """

    weights: int = 0
    max_error: float = 0.0
    error_squared: float = 0.0
    change_squared: float = 0.0
    weight_squared: float = 0.0

    @property
    def relative_error(self) -> float:
        """Frobenius norm of the rounding error over that of the merged weights."""
        return math.sqrt(self.error_squared / self.weight_squared) if self.weight_squared else 0.0

    @property
    def lost_change(self) -> float:
        """Frobenius norm of the rounding error over that of the adapter's change: what share of it was lost."""
        return math.sqrt(self.error_squared / self.change_squared) if self.change_squared else 0.0

    def line(self) -> str:
        """The report in words."""
        return (
            f"merged into {self.weights:,} weights; rounding error: at most {self.max_error:.2e} in a value, "
            f"{self.relative_error:.2e} of the weights and {self.lost_change:.2e} of the adapter's change (Frobenius)"
        )

    def add(self, before: Tensor, exact: Tensor, written: Tensor) -> None:
        """Count one matrix."""
        error = wide(written) - exact
        self.max_error = max(self.max_error, float(error.abs().max()))
        self.error_squared += float(error.double().square().sum())
        self.change_squared += float((exact - wide(before)).double().square().sum())
        self.weight_squared += float(exact.double().square().sum())


@torch.no_grad()
def merge(model: nn.Module, *, keep: bool = False) -> MergeReport:
    """Fold the active adapters into the base weights in place.

    Args:
        model: carries adapters.
        keep: leave the adapters on the model, where they rest until ``unmerge``; else they are removed, and names are then those of a model
            without one.

    Returns:
        What rounding cost; its ``line()`` is for printing.

    Raises:
        AdapterError: the model has no adapter, is merged already, or its weights are quantised.
    """
    if not adapter_names(model):
        raise AdapterError("the model has no adapter to merge.", fix="attach or load one first.")
    if is_quantised(model):
        raise AdapterError(
            "an adapter cannot be merged into quantised weights: their codes are too coarse to hold it.",
            fix="load the model dequantised and merge there.",
        )
    if is_merged(model):
        raise AdapterError("the model's adapters are merged already.", fix="unmerge them first.")
    report = MergeReport()
    for name, module in adapted_modules(model):
        if isinstance(module, StackedLora):
            _merge_stacks(model.get_submodule(name.rpartition(".")[0]), module, report, keep=keep)
        elif isinstance(module, AdaptedModule) and module.active:
            weight_oi: Tensor = module.base_layer.weight  # type: ignore[assignment]
            exact_oi = module.changed_weight()
            before_oi = weight_oi.detach().clone()
            weight_oi.copy_(exact_oi)
            report.add(before_oi, exact_oi, weight_oi)
            report.weights += 1
            if keep:
                module.keep_unmerged(before_oi)
    if keep:
        forget_decode(model)
        return report
    for _, module in adapted_modules(model):
        if isinstance(module, LoraLinear):
            module.starts.clear()  # the adapter holds what they took out
        elif isinstance(module, TrainedCopy):
            module.original_module = module.running
    detach(model)
    return report


def unmerge(model: nn.Module) -> None:
    """Take merged adapters out again: every weight has the bits it had, and the adapters act as before.

    Raises:
        AdapterError: nothing is merged.
    """
    if not is_merged(model):
        raise AdapterError("the model's adapters are not merged.", fix="merge them with keep=True first.")
    for name, module in adapted_modules(model):
        if isinstance(module, StackedLora):
            unmerge_stacks(model.get_submodule(name.rpartition(".")[0]), module)
        elif isinstance(module, AdaptedModule):
            module.unmerge()
    forget_decode(model)


def is_merged(model: nn.Module) -> bool:
    """Whether adapters are in the weights."""
    modules = (module for _, module in adapted_modules(model))
    return any(
        (isinstance(module, AdaptedModule) and module.is_merged) or (isinstance(module, StackedLora) and module.unmerged)
        for module in modules
    )


def _merge_stacks(experts: nn.Module, lora: StackedLora, report: MergeReport, *, keep: bool) -> None:
    """One expert at a time: a whole stack in fp32 is twice the size of the stack."""
    acting = lora.acting()
    kept: dict[str, Tensor] = {}
    for stack in ("gate_up_proj", "down_proj"):
        found = [(factors.stack_scales[stack], *factors.pairs()[stack]) for factors in acting if stack in factors.pairs()]
        if not found:
            continue
        stack_eoi: Tensor = getattr(experts, stack)
        if keep:
            kept[stack] = stack_eoi.detach().clone()
        for index in range(stack_eoi.shape[0]):
            exact_oi = wide(stack_eoi[index])
            for scale, a_eri, b_eor in found:
                exact_oi = exact_oi + scale * (wide(b_eor[index]) @ wide(a_eri[index]))
            before_oi = stack_eoi[index].clone()
            stack_eoi[index].copy_(exact_oi)
            report.add(before_oi, exact_oi, stack_eoi[index])
        report.weights += 1
    lora.unmerged.update(kept)
