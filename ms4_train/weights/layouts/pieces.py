"""The pieces of a checkpoint: the smallest weights that keep their identity in every layout.

A piece is an ordinary tensor, or one routed expert's gate, up or down matrix; layouts differ in how they name, stack, permute and encode
pieces (``ms4_train.weights.layouts.tables``), never in the pieces. Names are ours: transformers' text-only names, experts numbered
(``model.layers.3.mlp.experts.17.gate_proj.weight``), and ``vision_tower.*``, ``multi_modal_projector.*``.
Exercise it: ``pytest tests/ms4_train/weights/layouts/test_pieces.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ms4_train.model import TextConfig, VisionConfig


class Part(StrEnum):
    """What a piece belongs to; layouts quantise by this."""

    ATTENTION = "attention"
    """The five projections of a layer's attention."""
    SHARED = "shared"
    """The three matrices of a layer's shared expert."""
    EXPERT = "expert"
    """A matrix of a routed expert."""
    TEXT = "text"
    """The rest of the text network: embedding, head, router, norms."""
    VISION = "vision"
    """Tower, patch merger and projector."""


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a whole checkpoint; ``vision`` is None for a text-only one."""

    text: TextConfig
    vision: VisionConfig | None = None

    def num_parameters(self) -> int:
        """Parameters, scales not counted (119,401,298,944 for the release, spec section 1.3)."""
        return self.text.num_parameters() + (self.vision.num_parameters(self.text.hidden_size) if self.vision else 0)


@dataclass(frozen=True)
class Piece:
    """One piece: its name here, its shape, and what it belongs to.

    Attributes:
        layer: of the text network, else None.
        expert: number of the routed expert, else None.
        matrix: for an expert's or the shared expert's, ``gate_proj``, ``up_proj`` or ``down_proj``; else empty.
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    layer: int | None = None
    expert: int | None = None
    matrix: str = ""

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def pieces(config: ModelConfig) -> Iterator[Piece]:
    """Give every piece of a checkpoint, in the order of the network: text, then vision."""
    text = config.text
    yield Piece("model.embed_tokens.weight", (text.vocab_size, text.hidden_size), Part.TEXT)
    for layer in range(text.num_hidden_layers):
        yield from _layer_pieces(text, layer)
    yield Piece("model.norm.weight", (text.hidden_size,), Part.TEXT)
    yield Piece("lm_head.weight", (text.vocab_size, text.hidden_size), Part.TEXT)
    if config.vision is not None:
        for name, shape in _vision_shapes(config.vision, text.hidden_size):
            yield Piece(name, shape, Part.VISION)


def _layer_pieces(config: TextConfig, layer: int) -> Iterator[Piece]:
    d, n, heads = config.hidden_size, config.moe_intermediate_size, config.num_attention_heads
    prefix = f"model.layers.{layer}."
    attention = {
        "q_a_proj": (config.q_lora_rank, d),
        "q_a_layernorm": (config.q_lora_rank,),
        "q_b_proj": (heads * config.qk_head_dim, config.q_lora_rank),
        "kv_a_proj_with_mqa": (config.latent_dim, d),
        "kv_a_layernorm": (config.kv_lora_rank,),
        "kv_b_proj": (heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank),
        "o_proj": (d, heads * config.v_head_dim),
    }
    yield Piece(f"{prefix}input_layernorm.weight", (d,), Part.TEXT, layer)
    for name, shape in attention.items():
        yield Piece(f"{prefix}self_attn.{name}.weight", shape, Part.ATTENTION if len(shape) == 2 else Part.TEXT, layer)
    yield Piece(f"{prefix}post_attention_layernorm.weight", (d,), Part.TEXT, layer)
    yield Piece(f"{prefix}mlp.gate.weight", (config.n_routed_experts, d), Part.TEXT, layer)
    for expert in range(config.n_routed_experts):
        for matrix, shape in (("gate_proj", (n, d)), ("up_proj", (n, d)), ("down_proj", (d, n))):
            yield Piece(f"{prefix}mlp.experts.{expert}.{matrix}.weight", shape, Part.EXPERT, layer, expert, matrix)
    shared = n * config.n_shared_experts
    for matrix, shape in (("gate_proj", (shared, d)), ("up_proj", (shared, d)), ("down_proj", (d, shared))):
        yield Piece(f"{prefix}mlp.shared_experts.{matrix}.weight", shape, Part.SHARED, layer, None, matrix)


def _vision_shapes(config: VisionConfig, text_hidden_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, n = config.hidden_size, config.intermediate_size
    yield "vision_tower.patch_conv.weight", (d, config.num_channels, config.patch_size, config.patch_size)
    yield "vision_tower.ln_pre.weight", (d,)
    for layer in range(config.num_hidden_layers):
        prefix = f"vision_tower.transformer.layers.{layer}."
        yield f"{prefix}attention_norm.weight", (d,)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{prefix}attention.{name}.weight", (d, d)
        yield f"{prefix}ffn_norm.weight", (d,)
        yield f"{prefix}feed_forward.gate_proj.weight", (n, d)
        yield f"{prefix}feed_forward.up_proj.weight", (n, d)
        yield f"{prefix}feed_forward.down_proj.weight", (d, n)
    yield "multi_modal_projector.norm.weight", (d,)
    yield "multi_modal_projector.patch_merger.merging_layer.weight", (d, d * config.spatial_merge_size**2)
    yield "multi_modal_projector.linear_1.weight", (text_hidden_size, d)
    yield "multi_modal_projector.linear_2.weight", (text_hidden_size, text_hidden_size)
