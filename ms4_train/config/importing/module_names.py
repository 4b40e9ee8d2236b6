"""Names of the released model's modules and parameters as transformers has them, which is what other programs' patterns are about.

Written down, so that a translation needs neither torch nor the model; a test compares them with transformers.
Exercise it: ``pytest tests/ms4_train/config/importing/test_module_names.py``.
"""

from __future__ import annotations

TEXT_LAYERS, VISION_LAYERS = 36, 24
TEXT, VISION, PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."

MLA_PROJECTIONS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
STACKS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
ROUTER = "mlp.gate.weight"


def _layers(prefix: str, count: int, names: list[str]) -> list[str]:
    return [f"{prefix}layers.{layer}.{name}" for layer in range(count) for name in names]


def adaptable_names() -> list[str]:
    """Linear modules and embeddings of the whole model, which PEFT's ``target_modules`` can mean; text first."""
    attention = [f"self_attn.{name}" for name in MLA_PROJECTIONS]
    text = [*attention, *(f"mlp.shared_experts.{name}" for name in _MLP)]
    vision = [*(f"attention.{name}_proj" for name in "qkvo"), *(f"feed_forward.{name}" for name in _MLP)]
    return [
        f"{TEXT}embed_tokens",
        *_layers(TEXT, TEXT_LAYERS, text),
        "lm_head",
        *_layers(f"{VISION}transformer.", VISION_LAYERS, vision),
        *(f"{PROJECTOR}{name}" for name in ("patch_merger.merging_layer", "linear_1", "linear_2")),
    ]


def parameter_names() -> list[str]:
    """All 765 parameters."""
    text = [
        *("input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_a_layernorm.weight", "self_attn.kv_a_layernorm.weight"),
        *(ROUTER, *STACKS),
    ]
    return [
        *(f"{name}.weight" for name in adaptable_names()),
        *_layers(TEXT, TEXT_LAYERS, text),
        f"{TEXT}norm.weight",
        *(f"{VISION}{name}.weight" for name in ("patch_conv", "ln_pre")),
        *_layers(f"{VISION}transformer.", VISION_LAYERS, ["attention_norm.weight", "ffn_norm.weight"]),
        f"{PROJECTOR}norm.weight",
    ]


def is_text(name: str) -> bool:
    """Whether a name belongs to the text network, its head included."""
    return name.startswith((TEXT, "lm_head"))


def kind_of(name: str) -> str:
    """A name without its place in the model, such that it means the same modules to an adapter section of ours.

    ``model.language_model.layers.3.self_attn.o_proj`` -> ``self_attn.o_proj``.
    """
    return name.rpartition("layers.")[2].partition(".")[2].removeprefix("mlp.") if "layers." in name else name.rpartition("model.")[2]
