"""A checkpoint folder's configuration, whichever family of files it holds: ``params.json`` or ``config.json``.

The softmax scale cannot be read off a Hugging Face configuration alone (spec section 0.1), so these decide, the first that is there:
the caller's switch; ``yarn.apply_scale`` of a ``params.json`` in the folder; ``softmax_scale`` as written by this program; else plain,
which is what the release was trained with although its ``mscale_all_dim`` is 1.
Exercise it: ``pytest tests/ms4_train/weights/layouts/test_model_config.py``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from ms4_train.errors import WeightsError
from ms4_train.model import TextConfig
from ms4_train.untrusted import parse_json, read_bytes
from ms4_train.weights.layouts.detect import find_family
from ms4_train.weights.layouts.hf_config import CONFIG_FILE, hf_model_config
from ms4_train.weights.layouts.native_config import NATIVE_CONFIG_FILE, native_model_config
from ms4_train.weights.layouts.pieces import ModelConfig

MAX_CONFIG_BYTES = 4 << 20
ScaleChoice = Literal["auto", "plain", "mscale"]


def read_config(folder: str | Path, *, softmax_scale: ScaleChoice = "auto") -> TextConfig:
    """The text network's configuration. Arguments and errors as for ``read_model_config``."""
    return read_model_config(folder, softmax_scale=softmax_scale).text


def read_model_config(
    folder: str | Path, *, family: Literal["auto", "hf", "native"] = "auto", softmax_scale: ScaleChoice = "auto"
) -> ModelConfig:
    """Read the configuration that belongs to a folder's weights.

    Args:
        folder: holds ``config.json`` or ``params.json``, and weights.
        family: which files to go by where the folder holds both.
        softmax_scale: ``plain`` or ``mscale`` set the attention scale; ``auto`` decides as the module's docstring says.

    Raises:
        WeightsError: another architecture, or a value that this network does not compute, with its key.
        UntrustedInputError: the file is missing or no JSON.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError("there is no such folder.", file=folder, fix="check model.path; relative paths start at the current folder.")
    if find_family(folder, family) == "native":
        config = native_model_config(_read_object(folder / NATIVE_CONFIG_FILE), file=folder / NATIVE_CONFIG_FILE)
    else:
        config = hf_model_config(_read_object(folder / CONFIG_FILE), file=folder / CONFIG_FILE)
        native_says = _apply_scale(folder)
        if native_says is not None:
            config = _with_scale(config, "mscale" if native_says else "plain")
    return config if softmax_scale == "auto" else _with_scale(config, softmax_scale)


def _with_scale(config: ModelConfig, softmax_scale: Literal["plain", "mscale"]) -> ModelConfig:
    return dataclasses.replace(config, text=dataclasses.replace(config.text, softmax_scale=softmax_scale))


def _apply_scale(folder: Path) -> bool | None:
    """``yarn.apply_scale`` of a ``params.json`` that lies beside Hugging Face files."""
    native = folder / NATIVE_CONFIG_FILE
    if not native.exists():
        return None
    yarn = _read_object(native).get("yarn")
    apply_scale = yarn.get("apply_scale") if isinstance(yarn, dict) else None
    if apply_scale is not None and not isinstance(apply_scale, bool):
        raise WeightsError("must be true or false.", file=native, key="yarn.apply_scale", fix="download the file again.")
    return apply_scale


def _read_object(file: Path) -> dict[str, Any]:
    content = parse_json(read_bytes(file, max_bytes=MAX_CONFIG_BYTES), file=file)
    if not isinstance(content, dict):
        raise WeightsError("must hold one JSON object.", file=file, fix="download the file again.")
    return content
