"""Native names are those that transformers' published conversion turns into its own."""

import re

import pytest

from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.layouts.native_names import native_name
from ms4_train.weights.layouts.pieces import ModelConfig, Part, pieces

# Facts of transformers' convert_mistral4_weight_to_hf.py: patterns of native names and their replacements, applied in this order.
TEXT = [
    ("^output", "lm_head"), ("^norm", "model.norm"), ("^tok_embeddings", "model.embed_tokens"), ("^layers", "model.layers"),
    ("attention_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"),
    (r"attention\.wkv_a_with_mqa", "self_attn.kv_a_proj_with_mqa"), (r"attention\.wkv_b", "self_attn.kv_b_proj"),
    (r"attention\.wq_a", "self_attn.q_a_proj"), (r"attention\.wq_b", "self_attn.q_b_proj"), (r"attention\.wo", "self_attn.o_proj"),
    (r"attention\.q_a_norm", "self_attn.q_a_layernorm"), (r"attention\.kv_a_norm", "self_attn.kv_a_layernorm"),
    (r"\.gate\.weight", ".mlp.gate.weight"), (r"shared_experts\.w1", "mlp.shared_experts.gate_proj"),
    (r"shared_experts\.w2", "mlp.shared_experts.down_proj"), (r"shared_experts\.w3", "mlp.shared_experts.up_proj"),
]  # fmt: skip
VISION = [
    ("^vision_encoder", "vision_tower"), (r"^vision_language_adapter\.w_in", "multi_modal_projector.linear_1"),
    (r"^vision_language_adapter\.w_out", "multi_modal_projector.linear_2"), ("^patch_merger", "multi_modal_projector.patch_merger"),
    ("^pre_mm_projector_norm", "multi_modal_projector.norm"), (r"attention\.wq\.", "attention.q_proj."),
    (r"attention\.wk\.", "attention.k_proj."), (r"attention\.wv\.", "attention.v_proj."), (r"attention\.wo\.", "attention.o_proj."),
    (r"feed_forward\.w1", "feed_forward.gate_proj"), (r"feed_forward\.w2", "feed_forward.down_proj"),
    (r"feed_forward\.w3", "feed_forward.up_proj"),
]  # fmt: skip


def published(native: str) -> str:
    is_vision = native.startswith(("vision_encoder.", "vision_language_adapter.", "patch_merger.", "pre_mm_projector_norm."))
    for pattern, replacement in VISION if is_vision else TEXT:
        native = re.sub(pattern, replacement, native)
    return native


def test_every_name_of_the_release_goes_back_by_the_published_renaming():
    found = {
        piece.name: native_name(piece.name) for piece in pieces(ModelConfig(TextConfig(), VisionConfig())) if piece.part is not Part.EXPERT
    }
    assert len(set(found.values())) == len(found)
    for ours, native in found.items():
        assert published(native) == ours


def test_experts():
    assert native_name("model.layers.35.mlp.experts.127.gate_proj.weight") == "layers.35.experts.127.w1.weight"
    assert native_name("model.layers.0.mlp.experts.3.up_proj.weight") == "layers.0.experts.3.w3.weight"
    assert native_name("model.layers.0.mlp.experts.3.down_proj.weight") == "layers.0.experts.3.w2.weight"


@pytest.mark.parametrize("name", ["model.layers.x.mlp.gate.weight", "model.layers.0.mlp.typo.weight", "", "vision_tower.layers.0.a.weight"])
def test_other_names_are_no_pieces(name):
    with pytest.raises(KeyError):
        native_name(name)
