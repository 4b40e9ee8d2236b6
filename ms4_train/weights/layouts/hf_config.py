"""``config.json`` <-> the model's configuration: flat text models, and multimodal ones with ``text_config`` and ``vision_config``.

Exercise it: ``pytest tests/ms4_train/weights/layouts/test_hf_config.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from ms4_train.errors import WeightsError
from ms4_train.model import TextConfig, VisionConfig
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import Encoding

CONFIG_FILE = "config.json"
ARCHITECTURE = "Mistral4ForCausalLM"
MULTIMODAL_ARCHITECTURE = "Mistral3ForConditionalGeneration"
_MULTIMODAL_TYPE = "mistral3"
_TEXT_TYPE = "mistral4"


def hf_model_config(content: Mapping[str, Any], *, file: Path) -> ModelConfig:
    """Read a parsed ``config.json``, flat or multimodal.

    ``softmax_scale`` as written by this program sets the scale; without it the scale is plain (spec section 0.1).

    Raises:
        WeightsError: another architecture, a quantisation that is not read, or a value that this network does not compute, with its key.
    """
    hf_encoding(content, file=file)
    values = _text_values(content, file)
    recorded = values.get("softmax_scale", content.get("softmax_scale"))
    try:
        text = TextConfig.from_dict(values, softmax_scale="plain" if recorded is None else recorded)  # from_dict refuses any other word
        vision = VisionConfig.from_hf(content) if content.get("vision_config") is not None else None
    except WeightsError as error:
        raise WeightsError(error.message, file=file, key=error.key, fix=error.fix) from None
    return ModelConfig(text, vision)


def to_hf_model_config(config: ModelConfig, *, dtype: torch.dtype, fp8: bool = False) -> dict[str, Any]:
    """The content of a ``config.json`` from which transformers computes what was trained here.

    Args:
        config: of the model; with vision the file is that of ``Mistral3ForConditionalGeneration``.
        dtype: of the values that are not quantised.
        fp8: whether linears and experts are in FP8 with one scale per matrix and static activation scales (spec section 3.3).
    """
    content = to_hf_config(config.text, dtype=dtype)
    if config.vision is not None:
        tower, beside = config.vision.to_hf()
        del content["architectures"]
        content = {
            "architectures": [MULTIMODAL_ARCHITECTURE],
            "model_type": _MULTIMODAL_TYPE,
            "dtype": content["dtype"],
            "text_config": content,
            "vision_config": tower,
            **beside,
        }
    if fp8:
        content["quantization_config"] = {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "weight_block_size": None,
            "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        }
    return content


def to_hf_config(config: TextConfig, *, dtype: torch.dtype) -> dict[str, Any]:
    """The content of a ``config.json`` from which transformers computes what was trained here.

    A plain scale is written as ``mscale_all_dim: 0`` with the cosine and sine factor fixed in ``attention_factor``: 0 alone would move
    that factor (spec section 0.1). ``softmax_scale`` is written beside it, for this program.
    """
    values = config.to_dict()
    rope = {key: value for key, value in values["rope_parameters"].items() if value is not None}
    rope["partial_rotary_factor"] = config.qk_rope_head_dim / config.qk_head_dim
    if rope.pop("truncate", True) is False:
        rope["truncate"] = False
    if config.softmax_scale == "plain":
        rope["mscale_all_dim"] = 0.0
        rope["attention_factor"] = float(config.rope_parameters.cos_sin_factor)
    return {
        **values,
        "architectures": [ARCHITECTURE],
        "model_type": _TEXT_TYPE,
        "dtype": str(dtype).removeprefix("torch."),
        "head_dim": config.qk_head_dim,
        "qk_head_dim": config.qk_head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "rope_interleave": True,
        "tie_word_embeddings": False,
        "use_cache": True,
        "rope_parameters": rope,
    }


def to_generation_config(config: TextConfig) -> dict[str, Any]:
    """The content of a ``generation_config.json``: the ids at which generation starts, ends and pads."""
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    return {key: value for key, value in ids.items() if value is not None}


def hf_encoding(content: Mapping[str, Any], *, file: Path) -> Encoding:
    """How a parsed ``config.json`` says that the weights are stored: ``plain`` or ``fp8`` (spec section 3.3).

    Raises:
        WeightsError: another quantisation, or FP8 in blocks.
    """
    found: Encoding = "plain"
    for prefix, holder in (("", content), ("text_config.", content.get("text_config"))):
        declared = holder.get("quantization_config") if isinstance(holder, Mapping) else None
        if not declared:
            continue
        key = f"{prefix}quantization_config"
        if not isinstance(declared, Mapping):
            _refuse("must be an object.", file, key, "download the file again.")
        method = declared.get("quant_method")
        if method != "fp8":
            _refuse(f"quantisation {method!r} is not read.", file, f"{key}.quant_method", "use the FP8, NVFP4 or BF16 files of the model.")
        if declared.get("weight_block_size") is not None:
            _refuse("FP8 in blocks is not read.", file, f"{key}.weight_block_size", "use files with one scale per matrix, or BF16 ones.")
        found = "fp8"
    return found


def _text_values(outer: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The mapping of text settings, with the older spelling of the rotary ones translated."""
    values, prefix = outer, ""
    outer_type = outer.get("model_type")
    if "text_config" in outer or outer_type == _MULTIMODAL_TYPE:
        values, prefix = outer.get("text_config"), "text_config."
        if not isinstance(values, Mapping):
            _refuse("must be an object.", file, "text_config", "download the file again.")
        if outer.get("tie_word_embeddings"):
            _refuse("is true; this network has an untied head.", file, "tie_word_embeddings", "use another checkpoint.")
    if values.get("model_type", _TEXT_TYPE) != _TEXT_TYPE or (values is outer and outer_type is None):
        what = f"is {values.get('model_type')!r}; only {_TEXT_TYPE!r} is read."
        _refuse(what, file, f"{prefix}model_type", "use a checkpoint of Mistral Small 4.")
    values = dict(values)
    older = values.pop("rope_scaling", None)
    if values.get("rope_parameters") is None and isinstance(older, Mapping):
        values["rope_parameters"] = older
    end_ids = values.get("eos_token_id")
    if isinstance(end_ids, list) and end_ids:
        values["eos_token_id"] = end_ids[0]
    return values


def _refuse(message: str, file: Path, key: str, fix: str) -> NoReturn:
    raise WeightsError(message, file=file, key=key, fix=fix)
