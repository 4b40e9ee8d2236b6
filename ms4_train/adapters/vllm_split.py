"""A file with vLLM's fused pairs as PEFT knows it: the way back from ``vllm_form``.

A block-diagonal pair gives back two pairs of half its rank. Any other, trained on vLLM's layer itself or of unequal ranks, gives two of the
whole rank that share A; the change of the weights is the same. Pairs of zeros, with which ``vllm_form`` fills stacks, stay.
Exercise it: ``pytest tests/ms4_train/adapters/test_vllm_split.py``.

Shape suffixes: r rank, i inputs, o outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ms4_train.adapters.ends import by_end
from ms4_train.adapters.peft_format import own_name
from ms4_train.adapters.vllm_form import FUSED, HALVES
from ms4_train.errors import AdapterError
from ms4_train.model import TextConfig


def is_fused(names: Iterable[str]) -> bool:
    """Whether a file holds fused pairs."""
    return any(f".{FUSED}." in name for name in names)


def split_fused(stored: Mapping[str, Tensor], settings: Mapping[str, Any], config: TextConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings with two pairs in the place of each fused one.

    Args:
        stored: tensors by their names in the file.
        settings: content of ``adapter_config.json``; targets of the result are left to be read off the tensors.
        config: of the base model.

    Raises:
        AdapterError: a fused pair lacks a side, or has not the sizes of this model's layers.
    """
    split = {name: tensor for name, tensor in stored.items() if f".{FUSED}." not in name}
    ranks, alphas = dict(settings.get("rank_pattern") or {}), dict(settings.get("alpha_pattern") or {})
    default_alpha, use_rslora = settings.get("lora_alpha"), bool(settings.get("use_rslora"))
    for module in dict.fromkeys(name.rpartition(".lora_")[0] for name in stored if f".{FUSED}." in name):
        a_ri, b_or = _sides(stored, module, config)
        alpha = by_end(alphas, own_name(module), by_end(alphas, module, default_alpha))
        owner = module.removesuffix(f".{FUSED}")
        for half, (half_a_ri, half_b_or) in zip(HALVES, _halves(a_ri, b_or, config.q_lora_rank), strict=True):
            split[f"{owner}.{half}.lora_A.weight"], split[f"{owner}.{half}.lora_B.weight"] = half_a_ri, half_b_or
            share = half_a_ri.shape[0] / a_ri.shape[0]
            ranks[f"{own_name(owner)}.{half}"] = half_a_ri.shape[0]
            if isinstance(alpha, int | float):
                alphas[f"{own_name(owner)}.{half}"] = alpha * (math.sqrt(share) if use_rslora else share)
    patterns = {"rank_pattern": _without_fused(ranks), "alpha_pattern": _without_fused(alphas)}
    return split, dict(settings) | patterns | {"target_modules": "as in the file"}


def _without_fused(pattern: Mapping[str, Any]) -> dict[str, Any]:
    return {end: value for end, value in pattern.items() if not end.endswith(FUSED)}


def _sides(stored: Mapping[str, Tensor], module: str, config: TextConfig) -> tuple[Tensor, Tensor]:
    sides = [stored.get(f"{module}.lora_{side}.weight") for side in "AB"]
    a_ri, b_or = sides
    if a_ri is None or b_or is None:
        raise AdapterError("one side of the pair is missing.", key=module, fix="use the whole adapter.")
    outputs = config.q_lora_rank + config.latent_dim
    if a_ri.ndim != 2 or tuple(b_or.shape) != (outputs, a_ri.shape[0]) or a_ri.shape[1] != config.hidden_size:
        raise AdapterError(
            f"has shapes {list(a_ri.shape)} and {list(b_or.shape)}, but this model needs [r, {config.hidden_size}] and [{outputs}, r].",
            key=module,
            fix="load the adapter on the model it was trained on.",
        )
    return a_ri, b_or


def _halves(a_ri: Tensor, b_or: Tensor, q_outputs: int) -> list[tuple[Tensor, Tensor]]:
    """The pairs of q_a and of kv_a."""
    rank = a_ri.shape[0] // 2
    first_or, second_or = b_or[:q_outputs], b_or[q_outputs:]
    if a_ri.shape[0] % 2 == 0 and not bool(first_or[:, rank:].any()) and not bool(second_or[:, :rank].any()):
        pairs = [(a_ri[:rank], first_or[:, :rank]), (a_ri[rank:], second_or[:, rank:])]
    else:
        pairs = [(a_ri, first_or), (a_ri, second_or)]
    return [(half_a_ri.clone(), half_b_or.contiguous()) for half_a_ri, half_b_or in pairs]
