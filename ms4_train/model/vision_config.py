"""The vision tower's and projector's configuration, with Hugging Face's field names (``vision_config`` of model type ``pixtral``).

Defaults are the 119B release (spec section 1.2). Exercise it: ``pytest tests/ms4_train/model/test_vision_config.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ms4_train.errors import WeightsError

_MAX_LAYERS = 1024
_MAX_SIZE = 2**31 - 1

# What transformers' classes can express and the release never uses.
_FIXED_TOWER: dict[str, Any] = {"model_type": "pixtral", "hidden_act": "silu", "attention_dropout": 0.0}
_FIXED_OUTER: dict[str, Any] = {
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": False,
    "vision_feature_layer": -1,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class VisionConfig:
    """Shapes and constants of the Pixtral tower, the patch merger and the projector.

    ``image_token_index`` and ``spatial_merge_size`` stand outside ``vision_config`` in a Hugging Face file.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    head_dim: int = 64
    num_channels: int = 3
    image_size: int = 1540
    patch_size: int = 14
    rope_theta: float = 10000.0
    spatial_merge_size: int = 2
    image_token_index: int = 10

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value <= _MAX_SIZE or (item.type == "int" and not isinstance(value, int)):
                _refuse(f"must be {'an integer' if item.type == 'int' else 'a number'} above 0, got {value!r:.40}.", item.name)
        if self.num_hidden_layers > _MAX_LAYERS:
            _refuse(f"must be at most {_MAX_LAYERS}, got {self.num_hidden_layers}.", "num_hidden_layers")
        if self.num_attention_heads * self.head_dim != self.hidden_size:
            _refuse(f"times num_attention_heads must be hidden_size, {self.hidden_size}; got {self.head_dim}.", "head_dim")
        if self.head_dim % 4:
            _refuse(f"must be a multiple of 4, for rows and columns each rotate pairs; got {self.head_dim}.", "head_dim")

    def num_parameters(self, text_hidden_size: int) -> int:
        """Parameters of tower, patch merger and projector (428,472,320 for the release, spec section 1.3)."""
        d, n = self.hidden_size, self.intermediate_size
        tower = self.num_channels * self.patch_size**2 * d + d + self.num_hidden_layers * (4 * d * d + 3 * d * n + 2 * d)
        return tower + d + self.spatial_merge_size**2 * d * d + text_hidden_size * d + text_hidden_size**2

    def to_hf(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (``vision_config``, what stands beside it) of a Hugging Face ``config.json``."""
        values = dataclasses.asdict(self)
        outer = {key: values.pop(key) for key in ("spatial_merge_size", "image_token_index")}
        rope_theta = values.pop("rope_theta")
        tower = {**_FIXED_TOWER, **values, "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta}}
        return tower, {**_FIXED_OUTER, **outer}

    @classmethod
    def from_hf(cls, outer: Mapping[str, Any]) -> VisionConfig:
        """Read a whole multimodal ``config.json``; what is absent takes the release's value.

        Raises:
            WeightsError: a value of the wrong type, or what this tower does not compute, with its key.
        """
        tower = outer.get("vision_config")
        if not isinstance(tower, Mapping):
            raise WeightsError("must be an object.", key="vision_config", fix="download the file again.")
        for holder, fixed, prefix in ((tower, _FIXED_TOWER, "vision_config."), (outer, _FIXED_OUTER, "")):
            for key, expected in fixed.items():
                if holder.get(key) is not None and holder[key] != expected:
                    _refuse(f"is {holder[key]!r}; this network computes {expected!r} only.", prefix + key)
        names = {item.name for item in dataclasses.fields(cls)}
        known: dict[str, Any] = {key: value for key, value in tower.items() if key in names and value is not None}
        rope = tower.get("rope_parameters")
        if isinstance(rope, Mapping) and rope.get("rope_theta") is not None:
            known["rope_theta"] = rope["rope_theta"]
        for ours, spellings in (
            ("spatial_merge_size", ("spatial_merge_size",)),
            ("image_token_index", ("image_token_index", "image_token_id")),
        ):
            found = [outer[key] for key in spellings if outer.get(key) is not None]
            if found:
                known[ours] = found[0]
        if "head_dim" not in known and all(isinstance(known.get(key), int) for key in ("hidden_size", "num_attention_heads")):
            known["head_dim"] = known["hidden_size"] // max(known["num_attention_heads"], 1)
        return cls(**known)


def _refuse(message: str, key: str) -> NoReturn:
    raise WeightsError(message, key=key, fix="correct the value, or use the configuration that belongs to the model.")
