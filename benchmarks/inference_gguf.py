"""Our text model as a GGUF file that llama.cpp loads: architecture ``mistral4``, fp32, names and keys as llama.cpp's own converter writes.

Two things differ from what that converter makes of a Hugging Face folder. llama.cpp multiplies attention scores by the square of
1 + 0.1 ln(factor) whatever ``rope.scaling.yarn_log_multiplier`` says; where the softmax scale is the plain one,
``rope.scaling.attn_factor`` takes that back, with the multiplier left out. And ``attention.temperature_scale`` is written, without which
queries beyond the first 8192 positions would not be scaled.
Exercise it: ``python benchmarks/inference.py --quick --peers llama.cpp``.

Shape suffixes: h heads, o / i features out / in, r latent, n part of a key without position, v value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ms4_train.model import Mistral4ForCausalLM, TextConfig

ARCHITECTURE = "mistral4"
ALIGNMENT = 32
UINT32, FLOAT32, BOOL, STRING = 4, 6, 7, 8
"""Types of values of the format; tensors of type 0 are fp32."""
NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
"""Names within a layer, ours to theirs; ``kv_b_proj`` becomes two tensors."""


def write_gguf(model: Mistral4ForCausalLM, file: Path) -> None:
    """Write ``model`` in fp32, without a tokenizer: prompts are token ids."""
    tensors = dict(_tensors(model))
    keys = _keys(model.config)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    head += [_text(name) + _value(value) for name, value in keys.items()]
    offset = 0
    for name, tensor in tensors.items():
        sizes = tuple(reversed(tensor.shape))
        head.append(_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, offset))
        offset += _aligned(tensor.nbytes)
    header = b"".join(head)
    with file.open("wb") as stream:
        stream.write(header.ljust(_aligned(len(header)), b"\0"))
        for tensor in tensors.values():
            stream.write(tensor.numpy().tobytes().ljust(_aligned(tensor.nbytes), b"\0"))


def _tensors(model: Mistral4ForCausalLM) -> Iterator[tuple[str, Tensor]]:
    state = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in model.state_dict().items()}
    config = model.config
    yield "token_embd.weight", state.pop("model.embed_tokens.weight")
    yield "output_norm.weight", state.pop("model.norm.weight")
    yield "output.weight", state.pop("lm_head.weight")
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        for name, their_name in NAMES.items():
            yield theirs + their_name, state.pop(ours + name)
        kv_b_oi = state.pop(ours + "self_attn.kv_b_proj.weight")
        kv_b_hor = kv_b_oi.view(config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim, config.kv_lora_rank)
        key_hnr, value_hvr = kv_b_hor.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        yield theirs + "attn_k_b.weight", key_hnr.transpose(1, 2).contiguous()
        yield theirs + "attn_v_b.weight", value_hvr.contiguous()
    if state:
        raise ValueError(f"GGUF has no place for {sorted(state)[:3]}")


def _keys(config: TextConfig) -> dict[str, str | int | float | bool]:
    rope = config.rope_parameters
    own: dict[str, int | float | bool | str] = {
        "vocab_size": config.vocab_size,
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "leading_dense_block_count": 0,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": 1,  # the latent is one head for all
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "attention.temperature_scale": float(rope.llama_4_scaling_beta),
        "attention.temperature_length": int(rope.original_max_position_embeddings),
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_norm": True,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_gating_func": 1,  # softmax
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.freq_base": float(rope.rope_theta),
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope.factor),
        "rope.scaling.original_context_length": int(rope.original_max_position_embeddings),
        "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
        "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
    }
    if config.softmax_scale == "plain":
        own["rope.scaling.attn_factor"] = 1 / rope.yarn_mscale(1.0)
    else:
        own["rope.scaling.yarn_log_multiplier"] = 0.1 * float(rope.mscale_all_dim or 0.0)
    general: dict[str, str | int | float | bool] = {
        "general.architecture": ARCHITECTURE,
        "general.alignment": ALIGNMENT,
        "general.file_type": 0,
        "tokenizer.ggml.model": "none",
    }
    return general | {f"{ARCHITECTURE}.{name}": value for name, value in own.items()}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | float | bool) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    return struct.pack("<I", STRING) + _text(value)
