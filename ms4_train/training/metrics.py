"""What a step costs and how it went: floating-point operations, tokens per second, model FLOPs utilisation, router load.

Operations are counted from the weights themselves, so adapters, frozen and quantised parts are counted as what they are. Exercise it:
``pytest tests/ms4_train/training/test_metrics.py``.

Not counted, as is customary: norms, activations, softmax, the optimizer, and what gradient checkpointing computes again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ms4_train.model import ImageBatch, Mistral3ForConditionalGeneration, Mistral4ForCausalLM
from ms4_train.model.quantised import LogicalWeight, logical_weights

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = 2, 2, 2
"""Operations per weight and token of each of the three matrix products of a linear layer."""

# Dense bf16 FLOP/s without sparsity, from the vendors' data sheets; matched as part of the device's name, first match wins.
_PEAK_FLOPS = {
    "GB300": 2.5e15,
    "GB200": 2.5e15,
    "B300": 2.25e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class VisionFlops:
    """Operations of tower and projector.

    Args:
        per_patch: of the tower's weights for each patch.
        per_patch_pair: for each pair of patches of one image, over all layers and heads of the tower.
        per_image_token: of merger and projector for each merged cell.
        merge: the side of a cell, in patches.
    """

    per_patch: float
    per_patch_pair: float
    per_image_token: float
    merge: int

    @classmethod
    def of_model(cls, model: Mistral3ForConditionalGeneration, weights: Sequence[LogicalWeight]) -> VisionFlops:
        """Count tower and projector; a part before which nothing is trained has no backward pass, and pixels have no gradient."""
        config = model.vision_config
        tower = [weight for weight in weights if weight.name.startswith("vision_tower.")]
        projector = [weight for weight in weights if weight.name.startswith("multi_modal_projector.")]
        tower_backward = any(weight.trained for weight in tower)
        projector_backward = tower_backward or any(weight.trained for weight in projector)
        per_pair = (3 if tower_backward else 1) * FORWARD * 2 * config.hidden_size * config.num_hidden_layers
        per_patch = sum(_linear_cost(weight, backward=tower_backward and "patch_conv" not in weight.name) for weight in tower)
        per_token = sum(_linear_cost(weight, backward=projector_backward) for weight in projector)
        return cls(per_patch, float(per_pair), per_token, config.spatial_merge_size)

    def count(self, images: ImageBatch) -> float:
        """Operations of one step over these images; attention is full inside each."""
        patches, pairs = sum(images.lengths), sum(length**2 for length in images.lengths)
        return self.per_patch * patches + self.per_patch_pair * pairs + self.per_image_token * patches / self.merge**2


@dataclass(frozen=True)
class FlopCounter:
    """Operations of training steps of one model.

    Args:
        per_token: operations of the layers for each token, attention scores aside.
        per_trained_token: operations of the head for each token with a target.
        per_attention_pair: operations for each pair of a query and a key it sees, over all layers and heads.
        vision: those of a model with images.
    """

    per_token: float
    per_trained_token: float
    per_attention_pair: float
    vision: VisionFlops | None = None

    @classmethod
    def of_model(cls, model: Mistral4ForCausalLM) -> FlopCounter:
        """Count a model that is frozen and adapted as it will be trained, before it is sharded.

        Frozen weights cost a forward product and the gradient of their input; trained ones also the gradient of the weight. A
        stacked expert parameter [E, ...] counts with the share k / E of its experts that a token visits.
        """
        config = model.config
        weights = [weight for weight in logical_weights(model) if len(weight.shape) > 1]
        per_token = per_trained = 0.0
        for weight in weights:
            if "embed_tokens" in weight.name or weight.name.startswith(("vision_tower.", "multi_modal_projector.")):
                continue
            active = config.num_experts_per_tok / weight.shape[0] if len(weight.shape) == 3 else 1.0
            cost = active * _linear_cost(weight)
            if weight.name.startswith("lm_head"):
                per_trained += cost
            else:
                per_token += cost
        head_dims = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        # Scores and values: a product each forward, two each backward (both factors need gradients).
        per_pair = 3 * FORWARD * config.num_attention_heads * head_dims * config.num_hidden_layers
        vision = VisionFlops.of_model(model, weights) if isinstance(model, Mistral3ForConditionalGeneration) else None
        return cls(per_token, per_trained, float(per_pair), vision)

    def count(self, *, tokens: int, trained_tokens: int, lengths: Iterable[int], images: ImageBatch | None = None) -> float:
        """Operations of one step over packed documents of these lengths and their images; attention is causal inside each document.

        Args:
            tokens: of all documents.
            trained_tokens: those with a target.
            lengths: tokens of each document.
            images: what the tower saw; a model without one takes none.
        """
        pairs = sum(length * (length + 1) // 2 for length in lengths)
        text = self.per_token * tokens + self.per_trained_token * trained_tokens + self.per_attention_pair * pairs
        if images is None:
            return text
        assert self.vision is not None
        return text + self.vision.count(images)


def _linear_cost(weight: LogicalWeight, *, backward: bool = True) -> float:
    """Operations of a linear layer for each of its inputs; ``backward``: a gradient of its input is wanted."""
    weight_gradient = WEIGHT_GRADIENT if weight.trained else 0
    return float(weight.shape.numel() * (FORWARD + weight_gradient + (INPUT_GRADIENT if backward else 0)))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of one device: a table for GPUs, a measured matrix product on a CPU; None for a GPU that is not in the table."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((flops for known, flops in _PEAK_FLOPS.items() if known in name), None)
    measured = _measured_flops(torch.float32, size=768)
    if dtype != torch.float32:
        # Many CPUs multiply bf16 far slower than fp32 (hence the smaller product); what the device can do is the better of the two.
        measured = max(measured, _measured_flops(dtype, size=192))
    return measured


def _measured_flops(dtype: torch.dtype, *, size: int, repeats: int = 4) -> float:
    factor = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(factor, factor)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


@dataclass(frozen=True)
class RouterLoad:
    """How evenly a step's tokens were spread over the experts.

    Args:
        max_over_mean: the fullest expert's tokens over the mean, averaged over layers; 1 is even.
        dead_experts: experts, over all layers, that no token visited in this step.
    """

    max_over_mean: float
    dead_experts: int


def router_load(counts_le: Tensor) -> RouterLoad:
    """Router load from the tokens of each expert, [layers, experts], summed over micro batches and ranks."""
    counts = counts_le.to(torch.float64)
    mean_l = counts.mean(dim=1).clamp(min=1e-9)
    return RouterLoad(float((counts.max(dim=1).values / mean_l).mean()), int((counts_le == 0).sum()))


class ExpertCounter:
    """Adds up the tokens of each expert over the micro batches of a step."""

    def __init__(self) -> None:
        self._counts_le: Tensor | None = None

    def add(self, counts: Sequence[Tensor]) -> None:
        """Add ``model.expert_counts()`` of one forward pass."""
        stacked = torch.stack(list(counts))
        self._counts_le = stacked if self._counts_le is None else self._counts_le + stacked

    def take(self) -> Tensor | None:
        """[layers, experts] of this step on this rank, and start again; None before any forward pass."""
        counts, self._counts_le = self._counts_le, None
        return counts


class Speedometer:
    """Tokens per second and utilisation between two readings."""

    def __init__(self, peak: float | None) -> None:
        self._peak = peak
        self.reset()

    def reset(self) -> None:
        """Forget what was added and start the clock; call it after work that is not training (evaluation, saving)."""
        self._started = time.perf_counter()
        self._tokens = 0
        self._flops = 0.0

    def add(self, tokens: int, flops: float) -> None:
        """Count a finished step: tokens of all ranks, operations of this rank."""
        self._tokens += tokens
        self._flops += flops

    def read(self) -> dict[str, float]:
        """``tokens_per_second`` and, where the peak is known, ``mfu`` since the last reading; starts again."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        metrics = {"tokens_per_second": self._tokens / seconds}
        if self._peak:
            metrics["mfu"] = self._flops / seconds / self._peak
        self.reset()
        return metrics
