"""What a step reads: the network's weights where they lie, in whatever type each is kept, and the adapters of its rows. Nothing is copied.

Matrices are [outputs, inputs] with contiguous rows, fp32, bf16 or quantised, each of a kind of its own. Adapters have numbers, 0, 1, ...;
a row of a step names one of them or none, and what a projection knows under that number is added to it, several pairs summed.
Exercise it: ``pytest tests/kernels/ms4_kernels/step/test_weights.py``.

Shape suffixes: o outputs, i inputs, r rank, e experts, d hidden, n expert width, c latent, f frequencies = rotary lanes / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ms4_kernels.moe.lora import ExpertLora
from ms4_kernels.quantised import QuantisedWeight

Matrix = Tensor | QuantisedWeight
"""[O, I] or, for a stack of experts, [E, O, I]."""


class LowRank(NamedTuple):
    """Adds ``scale * B A`` to a matrix; both fp32 or bf16."""

    a_ri: Tensor
    b_or: Tensor
    scale: float


@dataclass
class Projection:
    """A linear layer without bias, and its adapters by number."""

    weight: Matrix
    adapters: dict[int, tuple[LowRank, ...]] = field(default_factory=dict)


@dataclass
class ExpertStacks:
    """The routed experts of a layer, gate rows before up rows, and their adapters by number (each without a leading adapter axis)."""

    gate_up: Matrix
    down: Matrix
    adapters: dict[int, tuple[ExpertLora, ...]] = field(default_factory=dict)


@dataclass
class LayerWeights:
    """One layer. Norms and the router are fp32 or bf16."""

    input_norm: Tensor
    q_a: Projection
    q_a_norm: Tensor
    q_b: Projection
    kv_a: Projection
    kv_a_norm: Tensor
    kv_b: Projection
    o: Projection
    post_norm: Tensor
    router: Tensor
    experts: ExpertStacks
    shared_gate: Projection
    shared_up: Projection
    shared_down: Projection

    def projections(self) -> Iterator[tuple[str, Projection]]:
        """The linear layers by their names here."""
        for name in ("q_a", "q_b", "kv_a", "kv_b", "o", "shared_gate", "shared_up", "shared_down"):
            yield name, getattr(self, name)

    def vectors(self) -> Iterator[tuple[str, Tensor]]:
        """The norms by their names here."""
        for name in ("input_norm", "q_a_norm", "kv_a_norm", "post_norm"):
            yield name, getattr(self, name)


@dataclass
class NetworkWeights:
    """The network behind the embedding, and the numbers of its arithmetic.

    Attributes:
        layers: first to last.
        final_norm: [d].
        head: [V, d].
        norm_eps: of the norms of the residual stream.
        num_heads: query heads.
        nope, rope, value: lanes of a head: of query and key without position, of both with it, of the value.
        latent_rank: c; a cached token has ``latent_rank + rope`` values.
        top_k: experts per token.
        renormalise: divide the chosen probabilities by their sum.
        routed_scale: factor on routing weights afterwards.
        attention_scale: factor on scores.
        frequencies_f: fp32, the angle per position of each pair of rotary lanes.
        cos_sin_factor: on cosines and sines.
        llama4_beta, llama4_original: queries are scaled by ``1 + beta * ln(1 + floor(position / original))``.
        latent_norm_eps: of the norms inside attention.
        dequantised_to: what quantised weights are rounded to as they are widened: the model's type, so that a model computes the same
            whether it is kept quantised or was dequantised when it was read.
    """

    layers: list[LayerWeights]
    final_norm: Tensor
    head: Projection
    norm_eps: float
    num_heads: int
    nope: int
    rope: int
    value: int
    latent_rank: int
    top_k: int
    renormalise: bool
    routed_scale: float
    attention_scale: float
    frequencies_f: Tensor
    cos_sin_factor: float
    llama4_beta: float
    llama4_original: int
    latent_norm_eps: float = 1e-6
    dequantised_to: torch.dtype = torch.float32
