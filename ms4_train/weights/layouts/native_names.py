"""Our names -> the names in Mistral-native files (spec section 3.1).

Exercise it: ``pytest tests/ms4_train/weights/layouts/test_native_names.py``.
"""

from __future__ import annotations

import re

_OUTER = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "vision_tower.patch_conv.weight": "vision_encoder.patch_conv.weight",
    "vision_tower.ln_pre.weight": "vision_encoder.ln_pre.weight",
    "multi_modal_projector.norm.weight": "pre_mm_projector_norm.weight",
    "multi_modal_projector.patch_merger.merging_layer.weight": "patch_merger.merging_layer.weight",
    "multi_modal_projector.linear_1.weight": "vision_language_adapter.w_in.weight",
    "multi_modal_projector.linear_2.weight": "vision_language_adapter.w_out.weight",
}
_MATRICES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_TEXT = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attention.wq_a",
    "self_attn.q_a_layernorm": "attention.q_a_norm",
    "self_attn.q_b_proj": "attention.wq_b",
    "self_attn.kv_a_proj_with_mqa": "attention.wkv_a_with_mqa",
    "self_attn.kv_a_layernorm": "attention.kv_a_norm",
    "self_attn.kv_b_proj": "attention.wkv_b",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate": "gate",
} | {f"mlp.shared_experts.{ours}": f"shared_experts.{native}" for ours, native in _MATRICES.items()}
_VISION = (
    {"attention_norm": "attention_norm", "ffn_norm": "ffn_norm"}
    | {f"attention.{letter}_proj": f"attention.w{letter}" for letter in "qkvo"}
    | {f"feed_forward.{ours}": f"feed_forward.{native}" for ours, native in _MATRICES.items()}
)
_LAYER = re.compile(r"(?P<root>model|vision_tower\.transformer)\.layers\.(?P<layer>\d+)\.(?P<rest>.+)\.weight")
_EXPERT = re.compile(r"mlp\.experts\.(?P<expert>\d+)\.(?P<matrix>\w+)")


def native_name(name: str) -> str:
    """The native name of a piece's weight; ``.weight`` is kept.

    Raises:
        KeyError: not the name of a piece.
    """
    if name in _OUTER:
        return _OUTER[name]
    found = _LAYER.fullmatch(name)
    if found is None:
        raise KeyError(name)
    layer, rest = found["layer"], found["rest"]
    if found["root"] != "model":
        return f"vision_encoder.transformer.layers.{layer}.{_VISION[rest]}.weight"
    expert = _EXPERT.fullmatch(rest)
    if expert is not None:
        return f"layers.{layer}.experts.{expert['expert']}.{_MATRICES[expert['matrix']]}.weight"
    return f"layers.{layer}.{_TEXT[rest]}.weight"
