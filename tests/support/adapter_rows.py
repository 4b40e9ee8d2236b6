"""Adapters in folders, and for each a model with its weights changed by hand, which rows for that adapter are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from support.adapted import section, shake
from support.checkpoints import ATTENTION, SHARED, STACKS
from support.models import tiny_model
from support.multimodal import tiny_multimodal
from torch import Tensor

from ms4_train.adapters import adapter_tensors, attach, save_adapter
from ms4_train.adapters.checks import lora_scale
from ms4_train.config.schema import AdapterSection
from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4ForCausalLM

WIDE = {"target_modules": [*ATTENTION, *SHARED], "target_parameters": STACKS}
ENDS = {"target_modules": ["embed_tokens", "lm_head", "kv_b_proj"], "target_parameters": ["mlp.gate.weight"]}
SMALL = {"r": 2, "lora_alpha": 5.0, "target_modules": ["self_attn.o_proj", "kv_b_proj"], "target_parameters": STACKS[1:]}
DORA = {"target_modules": ["q_b_proj", "kv_b_proj"], "use_dora": True}
SAVED = {"target_modules": ["q_a_proj"], "modules_to_save": ["post_attention_layernorm", "kv_a_layernorm", "model.norm"]}
SAVED_ENDS = {"target_modules": ["q_a_proj"], "modules_to_save": ["embed_tokens", "lm_head", "mlp.gate", "shared_experts", "kv_b_proj"]}
SEES = {"target_modules": ["q_proj", "feed_forward.up_proj", "linear_1", "q_a_proj"]}

Make = Callable[[], Mistral4ForCausalLM]


def with_adapter(values: Mapping[str, Any], seed: int, *, make: Make = tiny_model, name: str = "default") -> Mistral4ForCausalLM:
    """A model with an adapter that acts, random by ``seed``."""
    model = make()
    attach(model, section(**values), name=name)
    shake(adapter_tensors(model, name), seed)
    return model.eval()


def make_folder(folder: Path, values: Mapping[str, Any], seed: int, *, make: Make = tiny_model) -> Path:
    """Save such an adapter."""
    model, settings = with_adapter(values, seed, make=make), section(**values)
    vision = model.vision_config if isinstance(model, Mistral3ForConditionalGeneration) else None
    tensors = adapter_tensors(model)
    save_adapter(tensors, folder, section=settings, config=model.config, vision=vision, base_path="base", base_fingerprint="sha256:0")
    return folder


def changed(values: Mapping[str, Any], seed: int, *, make: Make = tiny_model) -> Mistral4ForCausalLM:
    """The model with that adapter's change written into its weights, by plain arithmetic."""
    tensors = {name: value.clone() for name, value in adapter_tensors(with_adapter(values, seed, make=make)).items()}
    model = make()
    change(model, tensors, section(**values))
    return model


@torch.no_grad()
def change(model: Mistral4ForCausalLM, tensors: Mapping[str, Tensor], settings: AdapterSection) -> None:
    """Write ``W + s B A`` (with DoRA: of the recorded row lengths), or what is saved whole, into plain weights."""
    weights = dict(model.named_parameters())
    for name, a in tensors.items():
        if ".lora_A." in name:
            owner, b = name.partition(".lora_A.")[0], tensors[name.replace(".lora_A.", ".lora_B.")]
            weight_oi = weights[f"{owner}.weight"]
            weight_oi += lora_scale(settings, f"{owner}.weight" if owner.endswith("mlp.gate") else owner) * b @ a
            length_o = tensors.get(name.replace(".lora_A.default.weight", ".lora_magnitude_vector.default.weight"))
            if length_o is not None:
                weight_oi *= (length_o / weight_oi.norm(dim=1))[:, None]
        elif ".lora_embedding_A." in name:
            owner, b = name.partition(".lora_embedding_A.")[0], tensors[name.replace("_A.", "_B.")]
            weights[f"{owner}.weight"] += lora_scale(settings, owner) * (b @ a).t()
        elif "_a_er" in name:
            stack = name.replace(".lora.gate_up_a_erd", ".gate_up_proj").replace(".lora.down_a_ern", ".down_proj")
            b = tensors[name.replace("gate_up_a_erd", "gate_up_b_eir").replace("down_a_ern", "down_b_edr")]
            weights[stack] += lora_scale(settings, stack) * torch.einsum("eor,eri->eoi", b, a)
        elif ".modules_to_save." in name:
            weights[name.replace(".modules_to_save.default", "")].copy_(a)


def seeing_model() -> Mistral3ForConditionalGeneration:
    """A tiny model with a vision tower."""
    return tiny_multimodal()
