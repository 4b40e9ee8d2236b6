"""Two configurations, key by key: what changes the network's arithmetic, and what does not.

Exercise it: ``pytest tests/ms4_train/weights/compare/test_config_diff.py``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ms4_train.weights.layouts.pieces import ModelConfig

COSMETIC = frozenset(
    {
        *("initializer_range", "intermediate_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
        *(f"rope_parameters.{key}" for key in ("max_position_embeddings", "partial_rotary_factor", "attention_factor")),
        *("softmax_scale", "rope_parameters.mscale", "rope_parameters.mscale_all_dim"),
    }
)
"""Keys that no logit depends on by themselves. The last four act through ``attention_scale`` and ``cos_sin_factor``, which are compared."""


@dataclass(frozen=True)
class ConfigDifference:
    """One key that two configurations do not agree on; ``is_computational`` if logits depend on it."""

    key: str
    a: Any
    b: Any
    is_computational: bool


def compare_configs(a: ModelConfig, b: ModelConfig) -> list[ConfigDifference]:
    """Every difference, those of the arithmetic first; vision keys as ``vision.*``."""
    mine, theirs = _flat(a), _flat(b)
    found = [
        ConfigDifference(key, mine.get(key), theirs.get(key), key not in COSMETIC)
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    ]
    return sorted(found, key=lambda difference: not difference.is_computational)


def _flat(config: ModelConfig) -> dict[str, Any]:
    values = config.text.to_dict()
    rope = values.pop("rope_parameters")
    values |= {f"rope_parameters.{key}": value for key, value in rope.items()}
    values["attention_scale"] = config.text.attention_scale
    values["cos_sin_factor"] = config.text.rope_parameters.cos_sin_factor
    if config.vision is None:
        return values
    return values | {f"vision.{key}": value for key, value in dataclasses.asdict(config.vision).items()}
