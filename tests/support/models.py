"""Tiny models of the real architecture, and their twins in transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ms4_train.model import Mistral4ForCausalLM, RopeParameters, TextConfig, init_weights


def tiny_config(**overrides: Any) -> TextConfig:
    """Return two layers of width 64 with 8 experts; any field of TextConfig may be overridden."""
    values: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "max_position_embeddings": 4096,
        "rope_parameters": RopeParameters(factor=16.0, original_max_position_embeddings=256, max_position_embeddings=4096),
    }
    values |= overrides
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    return TextConfig(**values)


def tiny_model(config: TextConfig | None = None, seed: int = 0, dtype: torch.dtype = torch.float32) -> Mistral4ForCausalLM:
    """Return a model with random weights, in evaluation mode; weights are large enough that logits are far from uniform."""
    model = Mistral4ForCausalLM(config or tiny_config()).to(dtype)
    init_weights(model, seed, std=0.15)
    return model.eval()


def hf_config(config: TextConfig, **rope_overrides: Any) -> Any:
    """Return transformers' configuration with the same arithmetic, softmax scale included; ``rope_overrides`` change it on purpose.

    ``plain`` is expressed as transformers can: mscale_all_dim 0 and attention_factor 1.
    """
    from transformers import Mistral4Config

    values = config.to_dict()
    scale = values.pop("softmax_scale")
    rope = {key: value for key, value in dataclasses.asdict(config.rope_parameters).items() if value is not None}
    rope["partial_rotary_factor"] = config.qk_rope_head_dim / config.qk_head_dim
    if scale == "plain":
        rope |= {"mscale_all_dim": 0.0, "attention_factor": 1.0}
    values["rope_parameters"] = rope | rope_overrides
    values["pad_token_id"] = None  # with one, transformers zeroes that token's embedding and its gradient
    implementations: dict[str, Any] = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return Mistral4Config(**values, **implementations)


def hf_twin(model: Mistral4ForCausalLM, **rope_overrides: Any) -> Any:
    """Return transformers' Mistral4ForCausalLM with the same weights, in evaluation mode."""
    from transformers import Mistral4ForCausalLM as Oracle

    oracle: Any = Oracle(hf_config(model.config, **rope_overrides))
    oracle.to(model.lm_head.weight.dtype)
    oracle.load_state_dict(model.state_dict(), strict=True)
    return oracle.eval()
