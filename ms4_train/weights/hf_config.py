"""``config.json`` -> the text network's configuration, and back.

The softmax scale cannot be read off a Hugging Face configuration alone (spec section 0.1), so these decide, the first that is there:
the caller's switch; ``yarn.apply_scale`` of a ``params.json`` in the folder; ``softmax_scale`` as written by this program; else plain,
which is what the release was trained with although its ``mscale_all_dim`` is 1.
Exercise it: ``pytest tests/ms4_train/weights/test_hf_config.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch

from ms4_train.errors import WeightsError
from ms4_train.model.config import SoftmaxScale, TextConfig
from ms4_train.untrusted import parse_json, read_bytes

CONFIG_FILE = "config.json"
NATIVE_CONFIG_FILE = "params.json"
MAX_CONFIG_BYTES = 4 << 20
ARCHITECTURE = "Mistral4ForCausalLM"
_MULTIMODAL_TYPES = ("mistral3",)
_TEXT_TYPE = "mistral4"


def read_config(folder: str | Path, *, softmax_scale: Literal["auto", "plain", "mscale"] = "auto") -> TextConfig:
    """Read the text configuration of a checkpoint folder, flat or inside ``text_config``.

    Args:
        folder: holds ``config.json``.
        softmax_scale: ``plain`` or ``mscale`` set the attention scale; ``auto`` decides as the module's docstring says.

    Raises:
        WeightsError: another architecture, a quantised checkpoint, or a value that this network does not compute, with its key.
        UntrustedInputError: the file is missing or no JSON.
    """
    folder = Path(folder)
    file = folder / CONFIG_FILE
    if not folder.is_dir():
        raise WeightsError("there is no such folder.", file=folder, fix="check model.path; relative paths start at the current folder.")
    outer = _read_object(file)
    values = _text_values(outer, file)
    scale = softmax_scale if softmax_scale != "auto" else _recorded_scale(folder, outer, values)
    try:
        return TextConfig.from_dict(values, softmax_scale=scale)
    except WeightsError as error:
        raise WeightsError(error.message, file=file, key=error.key, fix=error.fix) from None


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


def _read_object(file: Path) -> dict[str, Any]:
    content = parse_json(read_bytes(file, max_bytes=MAX_CONFIG_BYTES), file=file)
    if not isinstance(content, dict):
        raise WeightsError("must hold one JSON object.", file=file, fix="download the file again.")
    return content


def _text_values(outer: dict[str, Any], file: Path) -> dict[str, Any]:
    """The mapping of text settings, with the older spelling of the rotary ones translated."""
    values = outer
    outer_type = outer.get("model_type")
    if "text_config" in outer or outer_type in _MULTIMODAL_TYPES:
        values = outer.get("text_config")
        if not isinstance(values, dict):
            raise WeightsError("must be an object.", file=file, key="text_config", fix="download the file again.")
        if outer.get("tie_word_embeddings"):
            raise WeightsError(
                "is true; this network has an untied head.", file=file, key="tie_word_embeddings", fix="use another checkpoint."
            )
    if values.get("model_type", _TEXT_TYPE) != _TEXT_TYPE or (values is outer and outer_type is None):
        raise WeightsError(
            f"is {values.get('model_type')!r}; only {_TEXT_TYPE!r} is read.",
            file=file,
            key="model_type" if values is outer else "text_config.model_type",
            fix="use a checkpoint of Mistral Small 4.",
        )
    for holder in (outer, values):
        if holder.get("quantization_config"):
            raise WeightsError(
                "a quantised checkpoint is not read.", file=file, key="quantization_config", fix="use a BF16 copy of the model."
            )
    values = dict(values)
    older = values.pop("rope_scaling", None)
    if values.get("rope_parameters") is None and isinstance(older, Mapping):
        values["rope_parameters"] = older
    end_ids = values.get("eos_token_id")
    if isinstance(end_ids, list) and end_ids:
        values["eos_token_id"] = end_ids[0]
    return values


def _recorded_scale(folder: Path, outer: Mapping[str, Any], values: Mapping[str, Any]) -> SoftmaxScale:
    native = folder / NATIVE_CONFIG_FILE
    if native.exists():
        yarn = _read_object(native).get("yarn")
        apply_scale = yarn.get("apply_scale") if isinstance(yarn, dict) else None
        if isinstance(apply_scale, bool):
            return "mscale" if apply_scale else "plain"
        if apply_scale is not None:
            raise WeightsError("must be true or false.", file=native, key="yarn.apply_scale", fix="download the file again.")
    recorded = values.get("softmax_scale", outer.get("softmax_scale"))
    if recorded is None:
        return "plain"
    return cast(SoftmaxScale, recorded)  # TextConfig refuses any other word
