"""``params.json`` of a Mistral-native folder -> the model's configuration, and back (spec section 3.2).

Exercise it: ``pytest tests/ms4_train/weights/layouts/test_native_config.py``.

Not covered: the values a native file does not carry (token ids, the initialiser's range), which take the release's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ms4_train.errors import WeightsError
from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import NVFP4_GROUP, Encoding, Layout

_LOG = logging.getLogger(__name__)

NATIVE_CONFIG_FILE = "params.json"
NO_ACTIVATION_SCALES = "NO_SCALES"
"""``quantization.qscheme_act`` of FP8 files without scales of activations; vLLM 0.32 then scales them as it runs."""

# native key -> ours
_TEXT_KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
}
_UNUSED = {"hidden_dim", "n_kv_heads"}
"""Keys that may be absent: no layer is dense, and every head has its own keys and values."""
_MOE_KEYS = {
    "num_experts": "n_routed_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "expert_hidden_dim": "moe_intermediate_size",
    "routed_scale": "routed_scaling_factor",
}
_VISION_KEYS = {
    **{key: key for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels")},
    **{key: key for key in ("image_size", "patch_size", "rope_theta", "spatial_merge_size")},
    "image_token_id": "image_token_index",
}
# What the layout can express and this network does not compute in any other way.
_FIXED: dict[str, Any] = {"tied_embeddings": False, "sliding_window": None, "activation": "silu", "model_type": None}
_FIXED_MOE: dict[str, Any] = {"first_k_dense_replace": 0, "route_every_n": 1, "num_expert_groups": 1, "num_expert_groups_per_tok": 1}
_FIXED_VISION: dict[str, Any] = {"adapter_bias": False, "add_pre_mm_projector_layer_norm": True, "mm_projector_id": "patch_merge"}
_BOOKKEEPING = {"head_dim", "max_position_embeddings", "max_seq_len", "rope_theta", "moe", "yarn", "llama_4_scaling", "vision_encoder"}
_BOOKKEEPING |= {"quantization", "quantization_config", "model_parallel", "torch_dtype", "dtype"}


def native_model_config(content: Mapping[str, Any], *, file: Path) -> ModelConfig:
    """Read a parsed ``params.json``.

    ``yarn.apply_scale`` sets the softmax scale: false is plain, true is mscale (spec section 0.1); absent is plain.

    Raises:
        WeightsError: a key is missing, of the wrong type, or asks for what this network does not compute; names file and key.
    """
    native_encoding(content, file=file)
    _check_fixed(content, _FIXED, file, "")
    moe, yarn = _section(content, "moe", file), _section(content, "yarn", file)
    _check_fixed(moe, _FIXED_MOE, file, "moe.")
    if unknown := sorted(set(content) - set(_TEXT_KEYS) - set(_FIXED) - _BOOKKEEPING):
        _LOG.warning("%s: ignoring unknown keys %s", file, ", ".join(unknown))
    values = {ours: _needed(content, key, file) for key, ours in _TEXT_KEYS.items() if key not in _UNUSED or key in content}
    values |= {ours: _needed(moe, key, file, "moe.") for key, ours in _MOE_KEYS.items() if key != "routed_scale" or key in moe}
    values["max_position_embeddings"] = content.get(
        "max_position_embeddings", content.get("max_seq_len", TextConfig.max_position_embeddings)
    )
    values["rope_parameters"] = _rope(content, yarn, values, file)
    apply_scale = yarn.get("apply_scale", False)
    if not isinstance(apply_scale, bool):
        raise WeightsError("must be true or false.", file=file, key="yarn.apply_scale", fix="download the file again.")
    vision = None
    if content.get("vision_encoder") is not None:
        vision = _vision(_section(content, "vision_encoder", file), file)
    try:
        text = TextConfig.from_dict(values, softmax_scale="mscale" if apply_scale else "plain")
    except WeightsError as error:
        raise _in_native_words(error, file) from None
    if content.get("head_dim", text.qk_head_dim) != text.qk_head_dim:
        raise WeightsError(
            f"is {content['head_dim']!r}, but qk_nope_head_dim + qk_rope_head_dim is {text.qk_head_dim}.",
            file=file,
            key="head_dim",
            fix="download the file again.",
        )
    return ModelConfig(text, vision)


def native_encoding(content: Mapping[str, Any], *, file: Path) -> Encoding:
    """How a parsed ``params.json`` says that the weights are stored: ``plain``, ``fp8`` or ``nvfp4`` (spec section 3.2).

    Raises:
        WeightsError: another quantisation, or two.
    """
    fix = "use the FP8, NVFP4 or BF16 files of the model."
    if content.get("quantization") and content.get("quantization_config"):
        raise WeightsError("contradicts quantization, which is there too.", file=file, key="quantization_config", fix=fix)
    if content.get("quantization"):
        declared = _section(content, "quantization", file)
        for key, known in (("qformat_weight", ("fp8_e4m3",)), ("qscheme_act", ("TENSOR", NO_ACTIVATION_SCALES, None))):
            if declared.get(key) not in known:
                what = f"is {declared.get(key)!r}; only {known[0]!r} is read."
                raise WeightsError(what, file=file, key=f"quantization.{key}", fix=fix)
        return "fp8"
    if content.get("quantization_config"):
        declared = _section(content, "quantization_config", file)
        name = declared.get("format", declared.get("quant_method"))
        if name != "nvfp4-pack-quantized":
            raise WeightsError(f"quantisation {name!r} is not read.", file=file, key="quantization_config.format", fix=fix)
        return "nvfp4"
    return "plain"


def to_params(config: ModelConfig, layout: Layout) -> dict[str, Any]:
    """The content of a ``params.json`` from which vLLM and SGLang serve what was trained.

    Args:
        config: of the model.
        layout: a native one; the FP8 and NVFP4 ones declare their quantisation.

    Raises:
        WeightsError: the configuration holds something that the native layout cannot say.
    """
    text, rope = config.text, config.text.rope_parameters
    _check_expressible(text)
    params: dict[str, Any] = {native: getattr(text, ours) for native, ours in _TEXT_KEYS.items()}
    params |= {
        "head_dim": text.qk_head_dim,
        "rope_theta": rope.rope_theta,
        "tied_embeddings": False,
        "max_position_embeddings": text.max_position_embeddings,
        "llama_4_scaling": {
            "beta": rope.llama_4_scaling_beta,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        },
        "yarn": {
            "alpha": rope.beta_slow,
            "apply_scale": text.softmax_scale == "mscale",
            "beta": rope.beta_fast,
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        },
        "moe": {native: getattr(text, ours) for native, ours in _MOE_KEYS.items()}
        | _FIXED_MOE
        | {"expert_parallel": 1, "expert_model_parallel": 1},
    }
    if config.vision is not None:
        params["vision_encoder"] = {native: getattr(config.vision, ours) for native, ours in _VISION_KEYS.items()} | {
            **_FIXED_VISION,
            "max_image_size": config.vision.image_size,
            "image_break_token_id": 12,
            "image_end_token_id": 13,
        }
    if layout is Layout.NATIVE_FP8:
        params["quantization"] = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    if layout is Layout.NVFP4:
        params["quantization_config"] = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "group_size": NVFP4_GROUP}
    return params


def _check_expressible(text: TextConfig) -> None:
    rope = text.rope_parameters
    wrong = {
        "norm_topk_prob": not text.norm_topk_prob,
        "rope_parameters.attention_factor": abs(rope.cos_sin_factor - 1.0) > 1e-9,
        "rope_parameters.truncate": not rope.truncate,
    }
    # mscale in a native file means YaRN's own magnitude, 0.1 ln(factor) + 1.
    wrong["rope_parameters.mscale_all_dim"] = text.softmax_scale == "mscale" and rope.mscale_all_dim not in (1, 1.0)
    for key, is_wrong in wrong.items():
        if is_wrong:
            raise WeightsError("has a value that Mistral's native layout cannot express.", key=key, fix="write the hf layout.")


def _rope(content: Mapping[str, Any], yarn: Mapping[str, Any], values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    original = _needed(yarn, "original_max_position_embeddings", file, "yarn.")
    llama_4 = _section(content, "llama_4_scaling", file) if content.get("llama_4_scaling") is not None else {}
    floor = llama_4.get("original_max_position_embeddings", original)
    if floor != original:
        raise WeightsError(
            f"is {floor!r}, but yarn has {original!r}; this network computes with one value.",
            file=file,
            key="llama_4_scaling.original_max_position_embeddings",
            fix="use a checkpoint of Mistral Small 4.",
        )
    return {
        "rope_type": "yarn",
        "rope_theta": content.get("rope_theta", 10000.0),
        "factor": _needed(yarn, "factor", file, "yarn."),
        "original_max_position_embeddings": original,
        "max_position_embeddings": values["max_position_embeddings"],
        "beta_fast": _needed(yarn, "beta", file, "yarn."),
        "beta_slow": _needed(yarn, "alpha", file, "yarn."),
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": llama_4.get("beta", 0.1),
    }


def _vision(values: Mapping[str, Any], file: Path) -> VisionConfig:
    _check_fixed(values, _FIXED_VISION, file, "vision_encoder.")
    known = {ours: values[native] for native, ours in _VISION_KEYS.items() if values.get(native) is not None}
    heads, width = known.get("num_attention_heads"), known.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        known["head_dim"] = values.get("head_dim", width // heads)
    try:
        return VisionConfig(**known)
    except WeightsError as error:
        raise WeightsError(error.message, file=file, key=f"vision_encoder.{error.key}", fix=error.fix) from None


def _in_native_words(error: WeightsError, file: Path) -> WeightsError:
    """The same error with the key as ``params.json`` spells it."""
    native = {ours: key for key, ours in _TEXT_KEYS.items()} | {ours: f"moe.{key}" for key, ours in _MOE_KEYS.items()}
    rope = {"factor": "yarn.factor", "beta_fast": "yarn.beta", "beta_slow": "yarn.alpha", "rope_theta": "rope_theta"}
    native |= {f"rope_parameters.{ours}": key for ours, key in rope.items()}
    return WeightsError(error.message, file=file, key=native.get(error.key or "", error.key), fix=error.fix)


def _section(content: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        what = "is missing." if value is None and key else "must be an object."
        raise WeightsError(what, file=file, key=key or None, fix="use the params.json that belongs to the model.")
    return value


def _needed(content: Mapping[str, Any], key: str, file: Path, prefix: str = "") -> Any:
    if content.get(key) is None:
        raise WeightsError("is missing.", file=file, key=prefix + key, fix="use the params.json that belongs to the model.")
    return content[key]


def _check_fixed(content: Mapping[str, Any], fixed: Mapping[str, Any], file: Path, prefix: str) -> None:
    for key, expected in fixed.items():
        if content.get(key) is not None and content[key] != expected:
            raise WeightsError(
                f"is {content[key]!r}; this network computes {expected!r} only.",
                file=file,
                key=prefix + key,
                fix="use a checkpoint of Mistral Small 4.",
            )
