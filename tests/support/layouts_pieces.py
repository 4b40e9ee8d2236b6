"""The weights of one tiny random multimodal model, cut as small as any layout cuts them, and what each is called in every layout.

Written from the published tables alone (spec sections 1 and 3.1), without ``ms4_train``, so that its readers and writers have something
to be compared with. Names of pieces are those of transformers' text-only class, with one matrix per expert.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Pieces = dict[str, Tensor]


@dataclass(frozen=True)
class Tiny:
    """Sizes of the tiny model; every matrix' width is a multiple of 16, as NVFP4 wants."""

    vocab_size: int = 512
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    q_lora_rank: int = 32
    kv_lora_rank: int = 32
    qk_nope_head_dim: int = 16
    qk_rope_head_dim: int = 16
    v_head_dim: int = 16
    n_routed_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 32
    intermediate_size: int = 128
    max_position_embeddings: int = 1048576
    yarn_factor: float = 128.0
    original_max_position_embeddings: int = 8192
    rope_theta: float = 10000.0
    llama_4_scaling_beta: float = 0.1
    vision_hidden_size: int = 32
    vision_intermediate_size: int = 64
    vision_num_hidden_layers: int = 2
    vision_num_attention_heads: int = 2
    patch_size: int = 14
    image_size: int = 112


TINY = Tiny()


def piece_shapes(tiny: Tiny, *, vision: bool = True) -> dict[str, tuple[int, ...]]:
    """Name and shape of every piece."""
    d, heads, width = tiny.hidden_size, tiny.num_attention_heads, tiny.moe_intermediate_size
    qk = tiny.qk_nope_head_dim + tiny.qk_rope_head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (tiny.vocab_size, d)}
    for layer in range(tiny.num_hidden_layers):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}input_layernorm.weight": (d,),
            f"{at}self_attn.q_a_proj.weight": (tiny.q_lora_rank, d),
            f"{at}self_attn.q_a_layernorm.weight": (tiny.q_lora_rank,),
            f"{at}self_attn.q_b_proj.weight": (heads * qk, tiny.q_lora_rank),
            f"{at}self_attn.kv_a_proj_with_mqa.weight": (tiny.kv_lora_rank + tiny.qk_rope_head_dim, d),
            f"{at}self_attn.kv_a_layernorm.weight": (tiny.kv_lora_rank,),
            f"{at}self_attn.kv_b_proj.weight": (heads * (tiny.qk_nope_head_dim + tiny.v_head_dim), tiny.kv_lora_rank),
            f"{at}self_attn.o_proj.weight": (d, heads * tiny.v_head_dim),
            f"{at}post_attention_layernorm.weight": (d,),
            f"{at}mlp.gate.weight": (tiny.n_routed_experts, d),
        }
        experts = [f"experts.{expert}" for expert in range(tiny.n_routed_experts)]
        for expert in [*experts, "shared_experts"]:
            shapes[f"{at}mlp.{expert}.gate_proj.weight"] = (width, d)
            shapes[f"{at}mlp.{expert}.up_proj.weight"] = (width, d)
            shapes[f"{at}mlp.{expert}.down_proj.weight"] = (d, width)
    shapes |= {"model.norm.weight": (d,), "lm_head.weight": (tiny.vocab_size, d)}
    return shapes | (_vision_shapes(tiny) if vision else {})


def _vision_shapes(tiny: Tiny) -> dict[str, tuple[int, ...]]:
    d, width = tiny.vision_hidden_size, tiny.vision_intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "vision_tower.patch_conv.weight": (d, 3, tiny.patch_size, tiny.patch_size),
        "vision_tower.ln_pre.weight": (d,),
    }
    for layer in range(tiny.vision_num_hidden_layers):
        at = f"vision_tower.transformer.layers.{layer}."
        shapes |= {f"{at}attention.{letter}_proj.weight": (d, d) for letter in "qkvo"}
        shapes |= {f"{at}{norm}.weight": (d,) for norm in ("attention_norm", "ffn_norm")}
        shapes |= {
            f"{at}feed_forward.gate_proj.weight": (width, d),
            f"{at}feed_forward.up_proj.weight": (width, d),
            f"{at}feed_forward.down_proj.weight": (d, width),
        }
    return shapes | {
        "multi_modal_projector.norm.weight": (d,),
        "multi_modal_projector.patch_merger.merging_layer.weight": (d, 4 * d),
        "multi_modal_projector.linear_1.weight": (tiny.hidden_size, d),
        "multi_modal_projector.linear_2.weight": (tiny.hidden_size, tiny.hidden_size),
    }


def reference_pieces(seed: int = 0, dtype: torch.dtype = torch.bfloat16, *, vision: bool = True, tiny: Tiny = TINY) -> Pieces:
    """The random weights. Each depends on ``seed`` and its own name only, so the text pieces are the same without the vision part.

    Norms scatter around one, and no two matrices have the same size of values, so that each has a scale of its own when quantised.
    """
    pieces = {}
    for name, shape in piece_shapes(tiny, vision=vision).items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        noise = torch.randn(shape, generator=generator)
        std = 0.15 * (0.6 + torch.rand((), generator=generator))
        pieces[name] = (1 + 0.25 * noise if len(shape) == 1 else std * noise).to(dtype)
    return pieces


# HF -> native, below a text layer. Order matters nowhere: every pattern is a whole name.
_TEXT_LAYER = {
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
}
_WHOLE = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "vision_tower.patch_conv": "vision_encoder.patch_conv",
    "vision_tower.ln_pre": "vision_encoder.ln_pre",
    "multi_modal_projector.norm": "pre_mm_projector_norm",
    "multi_modal_projector.patch_merger.merging_layer": "patch_merger.merging_layer",
    "multi_modal_projector.linear_1": "vision_language_adapter.w_in",
    "multi_modal_projector.linear_2": "vision_language_adapter.w_out",
}
_WIDE = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def native_name(piece: str) -> str:
    """What a piece is called in the Mistral-native layout, by the table of spec section 3.1."""
    stem = piece.removesuffix(".weight")
    if stem in _WHOLE:
        return _WHOLE[stem] + ".weight"
    if match := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.(experts\.\d+|shared_experts)\.(\w+)", stem):
        return f"layers.{match[1]}.{match[2]}.{_WIDE[match[3]]}.weight"
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem):
        return f"layers.{match[1]}.{_TEXT_LAYER[match[2]]}.weight"
    match = re.fullmatch(r"vision_tower\.transformer\.layers\.(\d+)\.(attention|feed_forward)\.(\w+)_proj", stem)
    if match:
        letter = "w" + match[3] if match[2] == "attention" else _WIDE[match[3] + "_proj"]
        return f"vision_encoder.transformer.layers.{match[1]}.{match[2]}.{letter}.weight"
    assert stem.startswith("vision_tower.transformer."), piece
    return stem.replace("vision_tower", "vision_encoder") + ".weight"


def is_vision_piece(piece: str) -> bool:
    """Whether it belongs to the vision tower or the projector."""
    return piece.startswith(("vision_tower.", "multi_modal_projector."))


def permute_vision_rows(weight: Tensor, heads: int, *, to_native: bool) -> Tensor:
    """Rows of a vision q or k matrix: rotary pairs as halves (HF) <-> as neighbours (native). Spec section 3.1."""
    rows, columns = weight.shape
    shape = (heads, 2, rows // heads // 2, columns) if to_native else (heads, rows // heads // 2, 2, columns)
    return weight.view(shape).transpose(1, 2).reshape(rows, columns).contiguous()


def native_tensors(pieces: Mapping[str, Tensor], tiny: Tiny = TINY) -> dict[str, Tensor]:
    """Stored tensors of the native layout in one type."""
    stored = {}
    for name, tensor in pieces.items():
        if re.search(r"vision_tower.*\.[qk]_proj\.", name):
            tensor = permute_vision_rows(tensor, tiny.vision_num_attention_heads, to_native=True)
        stored[native_name(name)] = tensor
    return stored


PREFIXES = {
    "disk": ("language_model.model.", "language_model.lm_head.", ""),
    "transformers": ("model.language_model.", "lm_head.", "model."),
    "text": ("model.", "lm_head.", None),
}
"""Style of HF names -> what stands before the text network, the head and the vision parts."""


def hf_name(piece: str, style: str = "disk") -> str:
    """What a piece that is no routed expert's is called in an HF folder of that style."""
    body, head, vision = PREFIXES[style]
    if is_vision_piece(piece):
        assert vision is not None, "a text folder holds no vision weights"
        return vision + piece
    return head + piece.removeprefix("lm_head.") if piece.startswith("lm_head.") else body + piece.removeprefix("model.")


def routed_experts(pieces: Mapping[str, Tensor]) -> dict[str, int]:
    """Prefix of each layer's routed experts (``model.layers.0.mlp.experts.``) -> how many there are."""
    counts: dict[str, int] = {}
    for name in pieces:
        if match := re.match(r"(model\.layers\.\d+\.mlp\.experts\.)(\d+)\.", name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts


def hf_tensors(pieces: Mapping[str, Tensor], style: str = "disk") -> dict[str, Tensor]:
    """Stored tensors of the HF layout in one type: experts are stacked, gate rows above up rows (spec section 2.2)."""
    stored = {hf_name(name, style): tensor for name, tensor in pieces.items() if ".mlp.experts." not in name}
    for prefix, count in routed_experts(pieces).items():
        gate, up, down = (
            torch.stack([pieces[f"{prefix}{expert}.{which}_proj.weight"] for expert in range(count)]) for which in ("gate", "up", "down")
        )
        stored[hf_name(prefix + "gate_up_proj", style)] = torch.cat([gate, up], dim=1)
        stored[hf_name(prefix + "down_proj", style)] = down
    return stored
