"""An adapter as vLLM's own executor of this model takes it, with a check that it is the same change of the weights.

vLLM (0.33, ``PixtralForConditionalGeneration`` over ``MistralLarge3ForCausalLM``) runs ``q_a_proj`` and ``kv_a_proj_with_mqa`` as one
layer, ``fused_qkv_a_proj``, and refuses adapters of the two. Their pairs, of ranks r and s, become one pair of rank r + s:

    A = [A_q; A_kv]                      [r + s, inputs]
    B = [[c_q B_q, 0], [0, c_kv B_kv]]   [outputs of q_a + outputs of kv_a, r + s]

vLLM scales every pair by ``lora_alpha / r`` of the file, whatever its own rank, and reads no patterns. So the scale c of every pair is
folded into its B and ``lora_alpha`` is set to ``r``, the largest rank of the file; patterns make PEFT's rule give 1 too. Names are those of
transformers' classes, which vLLM maps: ``base_model.model.model.language_model.layers.0.self_attn.fused_qkv_a_proj.lora_A.weight``, without
``language_model`` for a text model. Everything else stays as PEFT stores it. vLLM reads the stacks of a layer together, so where one is
adapted the other gets a pair of zeros. ``vllm_split`` is the way back.
Exercise it: ``pytest tests/ms4_train/adapters/test_vllm_form.py``.

Not covered, and refused: what vLLM applies no adapter to, which is DoRA, modules trained whole, embeddings, the head and the vision part.

Shape suffixes: r rank, i inputs, o outputs, e experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ms4_train.adapters.ends import by_end
from ms4_train.adapters.names import DEFAULT_ADAPTER
from ms4_train.adapters.peft_format import PEFT_PREFIX, adapted_parts, changed_part, is_vision_name, outer_name, to_peft
from ms4_train.adapters.peft_settings import peft_settings
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError
from ms4_train.weights.layouts.pieces import ModelConfig

FUSED = "fused_qkv_a_proj"
HALVES = ("q_a_proj", "kv_a_proj_with_mqa")
_MERGE = "merge the adapter and serve the model itself: ms4 model merge."
_A, _B = f"lora_A.{DEFAULT_ADAPTER}.weight", f"lora_B.{DEFAULT_ADAPTER}.weight"
_STACKS = ("gate_up_a_erd", "gate_up_b_eir"), ("down_a_ern", "down_b_edr")


@dataclass(frozen=True)
class VllmAdapter:
    """An adapter in vLLM's form.

    Attributes:
        stored: tensors by their names in the file.
        settings: content of ``adapter_config.json``.
        rank: the largest of the file; vLLM must be started with ``--max-lora-rank`` of at least that.
        fused: number of fused pairs.
        max_error: largest difference of a fused pair's change of the weights from the changes of its two pairs.
        max_change: largest value of those changes.
        fold_error: largest rounding of a B by folding its scale, as a share of the largest value of that B.
    """

    stored: dict[str, Tensor]
    settings: dict[str, Any]
    rank: int
    fused: int
    max_error: float
    max_change: float
    fold_error: float


def to_vllm(tensors: Mapping[str, Tensor], section: AdapterSection, config: ModelConfig, *, base_path: str) -> VllmAdapter:
    """An adapter in vLLM's form.

    Args:
        tensors: full parameters under our names.
        section: what they were attached with.
        config: of the base model.
        base_path: recorded as the base model.

    Raises:
        AdapterError: it changes something to which vLLM applies no adapter.
    """
    _refuse_unserved(tensors, section)
    scales = {name: _scale_of(name, tensors, section) for name in tensors if _is_b(name)}
    folded = {name: (tensor.float() * scales[name]).to(tensor.dtype) if name in scales else tensor for name, tensor in tensors.items()}
    fold_error = max((_fold_error(folded[name], tensors[name], scale) for name, scale in scales.items()), default=0.0)
    fused: dict[str, tuple[Tensor, Tensor]] = {}
    errors = [(0.0, 0.0)]
    for owner in dict.fromkeys(name.rpartition(f".{half}.")[0] for half in HALVES for name in tensors if f".{half}." in name):
        fused[owner] = _fuse(folded, owner, config)
        errors.append(_fused_error(fused[owner], tensors, scales, owner, config))
    rest = {name: tensor for name, tensor in folded.items() if not any(f".{half}." in name for half in HALVES)}
    rest |= _idle_stacks(rest)
    stored = to_peft(rest, whole_model=config.vision is not None)
    for owner, pair in fused.items():
        module = f"{PEFT_PREFIX}{outer_name(owner, whole_model=config.vision is not None)}.{FUSED}"
        stored |= {f"{module}.lora_{side}.weight": tensor for side, tensor in zip("AB", pair, strict=True)}
    ranks = adapted_parts(rest).ranks | {f"{owner}.{FUSED}": a_ri.shape[0] for owner, (a_ri, _) in fused.items()}
    settings = _settings(rest, ranks, section, config, base_path)
    return VllmAdapter(
        stored, settings, max(ranks.values()), len(fused), max(error for error, _ in errors), max(size for _, size in errors), fold_error
    )


def _refuse_unserved(tensors: Mapping[str, Tensor], section: AdapterSection) -> None:
    parts = adapted_parts(tensors)
    found = {
        "is an adapter of DoRA": [part for part in parts.ranks if section.use_dora],
        "is trained whole": parts.whole,
        "belongs to the vision part": [part for part in parts.ranks if is_vision_name(part)],
        "is an embedding or the head": [part for part in parts.ranks if part.endswith(("embed_tokens", "lm_head"))],
    }
    for what, names in found.items():
        if names:
            raise AdapterError(f"{what}, to which vLLM applies no adapter of this model.", key=names[0], fix=_MERGE)


def _is_b(name: str) -> bool:
    return name.endswith((_B, *(b for _, b in _STACKS)))


def _scale_of(name: str, tensors: Mapping[str, Tensor], section: AdapterSection) -> float:
    part = changed_part(name)
    assert part is not None
    rank = tensors[name].shape[-1]
    return by_end(section.alpha_pattern, part, section.lora_alpha) / (math.sqrt(rank) if section.use_rslora else rank)


def _fold_error(folded: Tensor, original: Tensor, scale: float) -> float:
    largest = _largest(original) * scale
    return _largest(folded.float() - original.float() * scale) / largest if largest else 0.0


def _fuse(folded: Mapping[str, Tensor], owner: str, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """One pair for the two of a layer; one that is not adapted takes no ranks, and its outputs none of the other's."""
    outputs = (config.text.q_lora_rank, config.text.latent_dim)
    pairs = [(folded.get(f"{owner}.{half}.{_A}"), folded.get(f"{owner}.{half}.{_B}")) for half in HALVES]
    a_ri = torch.cat([a for a, _ in pairs if a is not None])
    b_or = a_ri.new_zeros(sum(outputs), a_ri.shape[0])
    row = column = 0
    for size, (_, b) in zip(outputs, pairs, strict=True):
        if b is not None:
            b_or[row : row + size, column : column + b.shape[1]] = b
            column += b.shape[1]
        row += size
    return a_ri, b_or


def _fused_error(
    fused: tuple[Tensor, Tensor], tensors: Mapping[str, Tensor], scales: Mapping[str, float], owner: str, config: ModelConfig
) -> tuple[float, float]:
    """Compare B A of a fused pair with the two changes on top of each other; (largest difference, largest change)."""
    a_ri, b_or = fused
    changes: list[Tensor] = []
    for half, size in zip(HALVES, (config.text.q_lora_rank, config.text.latent_dim), strict=True):
        a, b = tensors.get(f"{owner}.{half}.{_A}"), tensors.get(f"{owner}.{half}.{_B}")
        if a is None or b is None:
            changes.append(torch.zeros(size, a_ri.shape[1]))
        else:
            changes.append(scales[f"{owner}.{half}.{_B}"] * (b.float() @ a.float()))
    exact_oi = torch.cat(changes)
    return _largest(b_or.float() @ a_ri.float() - exact_oi), _largest(exact_oi)


def _idle_stacks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pairs of zeros for the stacks whose neighbour in the layer alone is adapted."""
    added: dict[str, Tensor] = {}
    for name, a_eri in tensors.items():
        owner, found, leaf = name.rpartition(".lora.")
        for (a, b), (other_a, other_b) in (_STACKS, _STACKS[::-1]):
            if not found or leaf != a or f"{owner}.lora.{other_a}" in tensors:
                continue
            experts, rank, inputs = a_eri.shape
            outputs = tensors[f"{owner}.lora.{b}"].shape[1]
            # gate_up: [2n, d]; down: [d, n]
            other = (outputs // 2, inputs) if a == _STACKS[0][0] else (outputs, 2 * inputs)
            added[f"{owner}.lora.{other_a}"] = a_eri.new_zeros(experts, rank, other[0])
            added[f"{owner}.lora.{other_b}"] = a_eri.new_zeros(experts, other[1], rank)
    return added


def _settings(
    rest: Mapping[str, Tensor], ranks: Mapping[str, int], section: AdapterSection, config: ModelConfig, base_path: str
) -> dict[str, Any]:
    """Settings under which every pair has scale 1, by PEFT's rule and by vLLM's."""
    rank = max(ranks.values())
    plain = section.model_copy(
        update={"r": rank, "lora_alpha": float(rank), "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "lora_dropout": 0.0}
    )
    settings = peft_settings(plain, rest, config, base_path=base_path)
    whole_model = config.vision is not None
    smaller = {outer_name(name, whole_model=whole_model): size for name, size in ranks.items() if size != rank}
    targets = settings["target_modules"] or []
    fused = [FUSED] if any(name.endswith(FUSED) for name in ranks) else []
    return settings | {"rank_pattern": smaller, "alpha_pattern": smaller, "target_modules": [*targets, *fused]}


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
