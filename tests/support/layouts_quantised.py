"""The tiny model's weights as FP8 and NVFP4 stored tensors, and what they mean.

FP8 follows the published formulas (spec section 3.3; transformers' converter for Mistral 4 for the fusion of expert scales). NVFP4 is
computed and decoded by compressed-tensors itself.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from support.layouts_pieces import TINY, Pieces, Tiny, hf_name, native_name, native_tensors, routed_experts
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
_ATTENTION = r"self_attn\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)"
_EXPERTS = r"mlp\.(experts\.\d+|shared_experts)\.(gate|up|down)_proj"
FP8_PIECES = re.compile(rf"model\.layers\.\d+\.({_ATTENTION}|{_EXPERTS})\.weight")
NVFP4_PIECES = re.compile(rf"model\.layers\.\d+\.{_EXPERTS}\.weight")


def _random_scale(name: str, dtype: torch.dtype) -> Tensor:
    """A positive number that depends on the name only; 0-d."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return (0.01 + 0.1 * torch.rand((), generator=generator)).to(dtype)


def native_fp8_tensors(pieces: Mapping[str, Tensor], tiny: Tiny = TINY, scale_dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Stored tensors of the native FP8 layout: codes, ``qscale_weight`` (multiplied) and ``qscale_act``, both 0-d."""
    stored = native_tensors(pieces, tiny)
    for piece in filter(FP8_PIECES.fullmatch, pieces):
        name = native_name(piece)
        weight, stem = stored[name].float(), name.removesuffix("weight")
        scale = (weight.abs().max() / FP8_MAX).to(scale_dtype)
        stored[name] = (weight / scale.float()).clamp(-FP8_MAX, FP8_MAX).to(FP8)
        stored[f"{stem}qscale_weight"] = scale
        stored[f"{stem}qscale_act"] = _random_scale(name, scale_dtype)
    return stored


def _dequantised(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes.float() * scale.float()).to(dtype)


def fp8_reference_pieces(pieces: Mapping[str, Tensor], tiny: Tiny = TINY, scale_dtype: torch.dtype = torch.bfloat16) -> Pieces:
    """What the native FP8 tensors mean: code times scale, rounded once to the pieces' type."""
    stored = native_fp8_tensors(pieces, tiny, scale_dtype)
    found = dict(pieces)
    for piece in filter(FP8_PIECES.fullmatch, pieces):
        name = native_name(piece)
        found[piece] = _dequantised(stored[name], stored[name.removesuffix("weight") + "qscale_weight"], pieces[piece].dtype)
    return found


def _rescaled(codes: Tensor, scale: Tensor, fused: Tensor) -> Tensor:
    """Codes under another scale: the product is rounded to BF16, clamped, and rounded to FP8, which is where precision goes."""
    ratio = scale / fused
    return (codes.to(torch.bfloat16) * ratio).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def hf_fp8_tensors(
    pieces: Mapping[str, Tensor], tiny: Tiny = TINY, scale_dtype: torch.dtype = torch.bfloat16, style: str = "disk"
) -> dict[str, Tensor]:
    """Stored tensors of the HF FP8 layout, made from the native ones as transformers' converter makes them.

    An expert's gate and up get the larger of their two scales; so do the scales of their activations.
    """
    native = native_fp8_tensors(pieces, tiny, scale_dtype)
    stored = {}
    for piece, tensor in pieces.items():
        if ".mlp.experts." in piece:
            continue
        stem = native_name(piece).removesuffix("weight")
        if not FP8_PIECES.fullmatch(piece):
            stored[hf_name(piece, style)] = tensor
            continue
        stored[hf_name(piece, style)] = native[f"{stem}weight"]
        stored[hf_name(piece, style).removesuffix("weight") + "weight_scale_inv"] = native[f"{stem}qscale_weight"]
        stored[hf_name(piece, style).removesuffix("weight") + "activation_scale"] = native[f"{stem}qscale_act"]
    for prefix, count in routed_experts(pieces).items():
        base = hf_name(prefix, style)
        stored |= {f"{base}{name}": tensor for name, tensor in _fused_experts(native, native_name_of_experts(prefix), count).items()}
    return stored


def native_name_of_experts(prefix: str) -> str:
    """``model.layers.0.mlp.experts.`` -> ``layers.0.experts.``."""
    return prefix.removeprefix("model.").replace(".mlp.", ".")


def _fused_experts(native: Mapping[str, Tensor], at: str, count: int) -> dict[str, Tensor]:
    columns: dict[str, list[Tensor]] = {}
    for expert in range(count):
        codes, scales, acts = (
            [native[f"{at}{expert}.{letter}.{kind}"] for letter in ("w1", "w2", "w3")] for kind in ("weight", "qscale_weight", "qscale_act")
        )
        fused = torch.max(scales[0], scales[2])
        values = {
            "gate_up_proj": torch.cat([_rescaled(codes[0], scales[0], fused), _rescaled(codes[2], scales[2], fused)]),
            "gate_up_proj_scale_inv": fused.reshape(1, 1),
            "gate_up_proj_activation_scale": torch.max(acts[0], acts[2]),
            "down_proj": codes[1],
            "down_proj_scale_inv": scales[1].reshape(1, 1),
            "down_proj_activation_scale": acts[1],
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in columns.items()}


def hf_fp8_reference_pieces(pieces: Mapping[str, Tensor], tiny: Tiny = TINY, scale_dtype: torch.dtype = torch.bfloat16) -> Pieces:
    """What the HF FP8 tensors mean; gate and up of an expert differ from the native ones' meaning, the rest does not."""
    found = fp8_reference_pieces(pieces, tiny, scale_dtype)
    stored = hf_fp8_tensors(pieces, tiny, scale_dtype)
    for prefix, count in routed_experts(pieces).items():
        base = hf_name(prefix)
        for expert in range(count):
            codes, scale = stored[f"{base}gate_up_proj"][expert], stored[f"{base}gate_up_proj_scale_inv"][expert]
            gate, up = _dequantised(codes, scale, pieces[f"{prefix}{expert}.gate_proj.weight"].dtype).chunk(2)
            found |= {f"{prefix}{expert}.gate_proj.weight": gate.contiguous(), f"{prefix}{expert}.up_proj.weight": up.contiguous()}
    return found


def _nvfp4_scheme() -> Any:
    """The scheme ``NVFP4`` of compressed-tensors: 4-bit floats, groups of 16, e4m3 scales, activations quantised as they come."""
    from compressed_tensors.quantization import preset_name_to_scheme

    return preset_name_to_scheme("NVFP4", targets=["Linear"])


def nvfp4_quantization_config() -> dict[str, Any]:
    """``quantization_config`` as compressed-tensors writes it."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    ignore = [
        *("re:.*patch_merger.*", "re:.*vision_encoder.*", "re:.*vision_language_adapter.*", "re:.*kv_a_proj_with_mqa$", "re:.*q_a_proj$"),
        *("re:.*gate$", "re:.*self_attn.*", "re:.*attention.*", "model.embed_tokens", "lm_head"),
    ]
    config = QuantizationConfig(
        config_groups={"group_0": _nvfp4_scheme()},
        format="nvfp4-pack-quantized",
        ignore=ignore,
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    return {"quant_method": "compressed-tensors", **config.model_dump(mode="json")}


def nvfp4_tensors(pieces: Mapping[str, Tensor], tiny: Tiny = TINY) -> dict[str, Tensor]:
    """Stored tensors of the NVFP4 layout; scales and codes come from compressed-tensors.

    ``input_global_scale`` is F32 for routed experts and BF16 for the shared one, as in the release.
    """
    from compressed_tensors.compressors import NVFP4PackedCompressor
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = _nvfp4_scheme()
    stored = native_tensors(pieces, tiny)
    for piece in filter(NVFP4_PIECES.fullmatch, pieces):
        name = native_name(piece)
        weight, stem = stored.pop(name), name.removesuffix("weight")
        global_scale = generate_gparam(weight.float().min(), weight.float().max())
        groups = weight.float().unflatten(1, (-1, 16))
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights, global_scale=global_scale)
        module = {"weight": weight, "weight_scale": scale, "weight_global_scale": global_scale}
        packed = NVFP4PackedCompressor.compress(module, scheme)
        input_scale = 1 / _random_scale(name, torch.float32).reshape(1)
        packed["input_global_scale"] = input_scale if ".mlp.experts." in piece else input_scale.bfloat16()
        stored |= {stem + key: value.contiguous() for key, value in packed.items()}
    return stored


def nvfp4_reference_pieces(pieces: Mapping[str, Tensor], tiny: Tiny = TINY) -> Pieces:
    """What the NVFP4 tensors mean, decoded by compressed-tensors (BF16)."""
    from compressed_tensors.compressors import NVFP4PackedCompressor

    stored, scheme = nvfp4_tensors(pieces, tiny), _nvfp4_scheme()
    found = dict(pieces)
    for piece in filter(NVFP4_PIECES.fullmatch, pieces):
        stem = native_name(piece).removesuffix("weight")
        module = {key: stored[stem + key] for key in ("weight_packed", "weight_scale", "weight_global_scale")}
        found[piece] = NVFP4PackedCompressor.decompress(module, scheme)["weight"]
    return found
