"""``config.json`` and ``params.json`` of the tiny model, with the keys and values of the public repositories (spec sections 1 and 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from support.layouts_pieces import Tiny

FP8_QUANTIZATION = {
    "activation_scheme": "static",
    "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    "quant_method": "fp8",
    "weight_block_size": None,
}
NATIVE_FP8_QUANTIZATION = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}


def text_config(tiny: Tiny) -> dict[str, Any]:
    """``text_config`` as the release has it: YaRN's mscale_all_dim is 1, and nothing says that the softmax scale is plain."""
    qk = tiny.qk_nope_head_dim + tiny.qk_rope_head_dim
    own = (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim"),
        *("qk_rope_head_dim", "v_head_dim", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "intermediate_size"),
        "max_position_embeddings",
    )
    return {
        **{name: getattr(tiny, name) for name in own},
        "model_type": "mistral4",
        "num_key_value_heads": tiny.num_attention_heads,
        "head_dim": qk,
        "qk_head_dim": qk,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "output_router_logits": False,
        "pretraining_tp": 1,
        "rope_interleave": True,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 11,
        "rope_parameters": {
            "type": "yarn",
            "rope_type": "yarn",
            "rope_theta": tiny.rope_theta,
            "factor": tiny.yarn_factor,
            "original_max_position_embeddings": tiny.original_max_position_embeddings,
            "max_position_embeddings": tiny.max_position_embeddings,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale_all_dim": 1.0,
            "mscale": 1.0,
            "llama_4_scaling_beta": tiny.llama_4_scaling_beta,
            "partial_rotary_factor": tiny.qk_rope_head_dim / qk,
        },
    }


def hf_config(tiny: Tiny, *, dtype: torch.dtype = torch.bfloat16, vision: bool = True, fp8: bool = False) -> dict[str, Any]:
    """The whole ``config.json``: ``mistral3`` around text and vision, or the text network alone."""
    common: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "transformers_version": "5.4.0"}
    if fp8:
        common["quantization_config"] = FP8_QUANTIZATION
    if not vision:
        return {"architectures": ["Mistral4ForCausalLM"], **common, **text_config(tiny)}
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        **common,
        "model_type": "mistral3",
        "image_token_index": 10,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
        "tie_word_embeddings": False,
        "text_config": text_config(tiny),
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": tiny.vision_hidden_size,
            "intermediate_size": tiny.vision_intermediate_size,
            "num_hidden_layers": tiny.vision_num_hidden_layers,
            "num_attention_heads": tiny.vision_num_attention_heads,
            "head_dim": tiny.vision_hidden_size // tiny.vision_num_attention_heads,
            "num_channels": 3,
            "patch_size": tiny.patch_size,
            "image_size": tiny.image_size,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
        },
    }


def params(tiny: Tiny, *, vision: bool = True, apply_scale: bool = False) -> dict[str, Any]:
    """``params.json`` with the reconstructed set of keys; a quantised folder adds its own."""
    content = {
        "dim": tiny.hidden_size,
        "n_layers": tiny.num_hidden_layers,
        "head_dim": tiny.qk_nope_head_dim + tiny.qk_rope_head_dim,
        "hidden_dim": tiny.intermediate_size,
        "n_heads": tiny.num_attention_heads,
        "n_kv_heads": tiny.num_attention_heads,
        "norm_eps": 1e-6,
        "vocab_size": tiny.vocab_size,
        "rope_theta": tiny.rope_theta,
        "tied_embeddings": False,
        "max_position_embeddings": tiny.max_position_embeddings,
        "q_lora_rank": tiny.q_lora_rank,
        "kv_lora_rank": tiny.kv_lora_rank,
        "qk_nope_head_dim": tiny.qk_nope_head_dim,
        "qk_rope_head_dim": tiny.qk_rope_head_dim,
        "v_head_dim": tiny.v_head_dim,
        "llama_4_scaling": {
            "beta": tiny.llama_4_scaling_beta,
            "original_max_position_embeddings": tiny.original_max_position_embeddings,
        },
        "yarn": {
            "alpha": 1,
            "apply_scale": apply_scale,
            "beta": 32,
            "factor": tiny.yarn_factor,
            "original_max_position_embeddings": tiny.original_max_position_embeddings,
        },
        "moe": {
            "expert_hidden_dim": tiny.moe_intermediate_size,
            "expert_model_parallel": 1,
            "expert_parallel": 1,
            "first_k_dense_replace": 0,
            "num_expert_groups": 1,
            "num_expert_groups_per_tok": 1,
            "num_experts": tiny.n_routed_experts,
            "num_experts_per_tok": tiny.num_experts_per_tok,
            "num_shared_experts": 1,
            "route_every_n": 1,
            "routed_scale": 1.0,
        },
    }
    if vision:
        content["vision_encoder"] = {
            "hidden_size": tiny.vision_hidden_size,
            "intermediate_size": tiny.vision_intermediate_size,
            "num_hidden_layers": tiny.vision_num_hidden_layers,
            "num_attention_heads": tiny.vision_num_attention_heads,
            "num_channels": 3,
            "patch_size": tiny.patch_size,
            "image_size": tiny.image_size,
            "max_image_size": tiny.image_size,
            "rope_theta": 10000.0,
            "spatial_merge_size": 2,
            "adapter_bias": False,
            "add_pre_mm_projector_layer_norm": True,
            "mm_projector_id": "patch_merge",
            "image_token_id": 10,
            "image_break_token_id": 12,
            "image_end_token_id": 13,
        }
    return content
