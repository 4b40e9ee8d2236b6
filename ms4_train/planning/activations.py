"""What a forward pass keeps for its backward pass, in bytes, as the network's modules and kernels keep it on a GPU.

Counted operation by operation: a plain norm keeps its input in fp32; a linear layer its input if a weight of it is trained; attention its
queries, keys, values and output; the experts operation its input and pre-activation (``ms4_kernels.moe``), with ``recompute_experts`` the
input alone. With ``gradient_checkpointing`` each layer keeps its input, and one layer at a time the rest. What is kept is compared with
what torch's hooks see on a tiny model. Exercise it: ``pytest tests/ms4_train/planning/test_activations.py``.

Not covered: the order in which an allocator frees and joins blocks; FlashAttention's padding of head widths that differ.

Names: d hidden size, n expert width, k experts of a token, s bytes of an activation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ms4_train.config.schema import SftRun
from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4ForCausalLM, TextConfig
from ms4_train.model.network import Mistral4DecoderLayer
from ms4_train.model.norm import RMSNorm
from ms4_train.model.vision_config import VisionConfig

_WIDE = 4
"""Bytes of fp32: norms, router weights, softmax statistics."""
_INDEX = 8
"""Bytes of int64."""


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro batch on one rank.

    Attributes:
        kept: for the backward pass, at its most: all layers and, with checkpointing, one layer that is computed again.
        working: what one layer's forward or backward has beside that.
        exchange: rows of tokens on their way between expert-parallel ranks.
        logits: a chunk's logits, and the gradients that the loss forms at once.
    """

    kept: int
    working: int
    exchange: int
    logits: int


def activations(model: Mistral4ForCausalLM, run: SftRun, *, images: bool) -> Activations:
    """Count one micro batch of ``per_device_train_batch_size`` full rows, tokens spread evenly over the experts.

    Args:
        model: of one rank, with what is trained; on any device.
        run: the whole run.
        images: whether rows hold any. The tower is then counted as if they were nothing but images, its most.
    """
    config, training = model.config, run.training
    tokens = training.per_device_train_batch_size * run.data.max_length
    size = getattr(torch, run.model.dtype).itemsize
    ranks = run.parallel.expert_parallel_size
    travels = distinct_ranks(config, ranks) if ranks > 1 else 0.0
    layers: list[Mistral4DecoderLayer] = list(model.model.layers)  # type: ignore[arg-type]
    whole = [_layer(layer, config, size, recompute=training.recompute_experts, travels=travels) for layer in layers]
    between = config.hidden_size * size  # the residual stream between two layers
    kept = (len(layers) * between + max(whole)) if training.gradient_checkpointing else sum(whole)
    kept += between + _norm(model.model.norm, size)
    # Rows of experts in their order: outputs, gradients of the pre-activation, activations; then gradients of queries, keys and values.
    d, n, k = config.hidden_size, config.moe_intermediate_size, config.num_experts_per_tok
    working = size * k * (d + 3 * n) + 2 * size * config.num_attention_heads * (2 * config.qk_head_dim + config.v_head_dim)
    vision = 0.0
    if images and isinstance(model, Mistral3ForConditionalGeneration):
        patches = tokens * model.vision_config.spatial_merge_size**2
        vision = patches * _vision(model, model.vision_config, size, checkpointing=training.gradient_checkpointing)
    return Activations(
        kept=round(tokens * kept + vision),
        working=round(tokens * working),
        exchange=round(tokens * travels * (4 * d * size + k * (_WIDE + 4))),
        logits=_logits(model, size, tokens, training.loss_chunk_tokens),
    )


def distinct_ranks(config: TextConfig, ranks: int) -> float:
    """How many ranks hold the experts of a token on average, of ``ranks`` that share them out, where all choices are equally likely."""
    experts, chosen = config.n_routed_experts, config.num_experts_per_tok
    others = experts - experts // ranks
    return ranks * (1 - math.comb(others, chosen) / math.comb(experts, chosen))


def _layer(layer: Mistral4DecoderLayer, config: TextConfig, size: int, *, recompute: bool, travels: float) -> float:
    """Bytes that a decoder layer keeps for a token, without checkpointing."""
    d, n, k = config.hidden_size, config.moe_intermediate_size, config.num_experts_per_tok
    attention, mlp = layer.self_attn, layer.mlp
    total = float(_norm(layer.input_layernorm, size) + _norm(layer.post_attention_layernorm, size))
    total += _norm(attention.q_a_layernorm, size) + _norm(attention.kv_a_layernorm, size)
    # Inputs of linear layers; two that share one keep it once.
    total += size * d * (_learns(attention.q_a_proj) or _learns(attention.kv_a_proj_with_mqa))
    total += size * config.q_lora_rank * _learns(attention.q_b_proj)
    total += size * config.latent_dim * _learns(attention.kv_b_proj)
    heads = config.num_attention_heads
    total += heads * (size * (2 * config.qk_head_dim + 2 * config.v_head_dim) + _WIDE)
    total += _WIDE * d * _learns(mlp.gate) + k * (_WIDE + _INDEX)
    # The experts' input is the shared expert's too, unless it has travelled.
    total += size * d * (max(travels, 1.0) + (travels > 0 and _learns(mlp.shared_experts.gate_proj)))
    shared = n * config.n_shared_experts
    total += size * shared * (3 + _learns(mlp.shared_experts.down_proj))
    total += 2 * k * _INDEX + (0 if recompute else 2 * size * k * n)
    return total + size * _ranks(attention, mlp.shared_experts)


def _vision(model: Mistral3ForConditionalGeneration, config: VisionConfig, size: int, *, checkpointing: bool) -> float:
    """Bytes that tower and projector keep for a patch; nothing where no weight of them is trained."""
    d, n = config.hidden_size, config.intermediate_size
    if not _learns(model.vision_tower) and not _learns(model.multi_modal_projector):
        return 0.0
    projector = size * (2 * d + 3 * model.config.hidden_size / config.spatial_merge_size**2) + _WIDE * d
    if not _learns(model.vision_tower):
        return projector
    # Both norms and what follows them; queries and keys, turned and before; values and output; gate, silu, up and their product.
    layer = 2 * (_WIDE + size) * d + size * (8 * d + 4 * n) + _WIDE * config.num_attention_heads
    whole = config.num_hidden_layers * size * d + layer if checkpointing else config.num_hidden_layers * layer
    return whole + projector


def _logits(model: Mistral4ForCausalLM, size: int, tokens: int, chunk_tokens: int) -> int:
    config, head = model.config, model.lm_head
    chunk = min(tokens, chunk_tokens) * config.vocab_size * size
    gradients = 2 * tokens * config.hidden_size * size  # of the hidden states, and those of tokens with a target gathered
    sums = config.vocab_size * config.hidden_size * (_WIDE + size) if _learns(head) else 0
    return chunk + gradients + sums


def _norm(norm: RMSNorm, size: int) -> int:
    width = norm.weight.shape[0]
    return width * (_WIDE + size * _learns(norm))


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _ranks(*modules: nn.Module) -> int:
    """The ranks of all adapters on linear layers: what ``A x`` keeps."""
    names = ((name, parameter) for module in modules for name, parameter in module.named_parameters())
    return sum(parameter.shape[0] for name, parameter in names if ".lora_A." in name)
