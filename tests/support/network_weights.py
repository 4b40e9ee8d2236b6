"""The compiled step's view of a model, for tests that compare the two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ms4_kernels.step import ExpertStacks, LayerWeights, NetworkWeights, Projection
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.model.quantised import QuantisedLinear, QuantisedStack
from ms4_train.model.rope import yarn_frequencies


def network_weights(model: Mistral4ForCausalLM) -> NetworkWeights:
    """The model's weights where they lie, without adapters."""
    config, rope = model.config, model.config.rope_parameters
    return NetworkWeights(
        layers=[_layer(layer) for layer in model.model.layers],
        final_norm=model.model.norm.weight,
        head=Projection(model.lm_head.weight),
        norm_eps=config.rms_norm_eps,
        num_heads=config.num_attention_heads,
        nope=config.qk_nope_head_dim,
        rope=config.qk_rope_head_dim,
        value=config.v_head_dim,
        latent_rank=config.kv_lora_rank,
        top_k=config.num_experts_per_tok,
        renormalise=config.norm_topk_prob,
        routed_scale=config.routed_scaling_factor,
        attention_scale=config.attention_scale,
        frequencies_f=yarn_frequencies(rope, config.qk_rope_head_dim),
        cos_sin_factor=rope.cos_sin_factor,
        llama4_beta=rope.llama_4_scaling_beta,
        llama4_original=rope.original_max_position_embeddings,
    )


def make_pools(model: Mistral4ForCausalLM, num_blocks: int, block_size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Pools full of NaN, so that a block which is read before it is written shows."""
    shape = (num_blocks, block_size, model.config.latent_dim)
    return [torch.full(shape, torch.nan).to(dtype) for _ in model.model.layers]


def _layer(layer: Any) -> LayerWeights:
    attention, moe = layer.self_attn, layer.mlp
    return LayerWeights(
        input_norm=layer.input_layernorm.weight,
        q_a=_projection(attention.q_a_proj),
        q_a_norm=attention.q_a_layernorm.weight,
        q_b=_projection(attention.q_b_proj),
        kv_a=_projection(attention.kv_a_proj_with_mqa),
        kv_a_norm=attention.kv_a_layernorm.weight,
        kv_b=_projection(attention.kv_b_proj),
        o=_projection(attention.o_proj),
        post_norm=layer.post_attention_layernorm.weight,
        router=moe.gate.weight,
        experts=ExpertStacks(_value(moe.experts.gate_up_proj), _value(moe.experts.down_proj)),
        shared_gate=_projection(moe.shared_experts.gate_proj),
        shared_up=_projection(moe.shared_experts.up_proj),
        shared_down=_projection(moe.shared_experts.down_proj),
    )


def _projection(module: Any) -> Projection:
    return Projection(module.value() if isinstance(module, QuantisedLinear) else module.weight)


def _value(stack: Any) -> Any:
    return stack.value() if isinstance(stack, QuantisedStack) else stack
