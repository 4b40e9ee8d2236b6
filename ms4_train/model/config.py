"""The text network's configuration, with Hugging Face's field names (``text_config`` of model type ``mistral4``).

Defaults are the 119B release (spec section 1.1). A configuration that this network does not compute is refused here, once, so that no
layer has to ask. Exercise it: ``pytest tests/ms4_train/model/test_config.py``.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

from ms4_train.errors import WeightsError

_LOG = logging.getLogger(__name__)

SoftmaxScale = Literal["plain", "mscale"]

# Far above any real model. A damaged file must not ask for years of building modules, or for sizes that torch cannot count.
_MAX_LAYERS = 1024
_MAX_EXPERTS = 1 << 17  # of all layers
_MAX_SIZE = 2**31 - 1
_MAY_BE_ZERO = {"mscale", "mscale_all_dim", "llama_4_scaling_beta"}

# What transformers' class can express and the released architecture never uses. Any other value would silently change the arithmetic.
_FIXED: dict[str, Any] = {
    "model_type": "mistral4",
    "hidden_act": "silu",
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "rope_interleave": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "pretraining_tp": 1,
    "mlp_bias": False,
    "sliding_window": None,
}
# Written by transformers beside the fields; they follow from others or say nothing about the arithmetic.
_BOOKKEEPING = {
    *("architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "output_router_logits", "head_dim"),
    *("qk_head_dim", "num_local_experts", "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward"),
    *("is_encoder_decoder", "id2label", "label2id", "problem_type", "_name_or_path", "rope_theta", "quantization_config"),
}


@dataclass(frozen=True)
class RopeParameters:
    """YaRN rotary embedding and the Llama-4 query scale; names as in Hugging Face's ``rope_parameters``."""

    rope_type: str = "yarn"
    rope_theta: float = 10000.0
    factor: float = 128.0
    original_max_position_embeddings: int = 8192
    max_position_embeddings: int | None = 1048576
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = 1.0
    mscale_all_dim: float | None = 1.0
    attention_factor: float | None = None
    llama_4_scaling_beta: float = 0.1
    partial_rotary_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _check_types(self, prefix="rope_parameters.")
        if self.rope_type != "yarn":
            _refuse(f"is {self.rope_type!r}; this network computes 'yarn' only.", "rope_parameters.rope_type")
        if self.rope_theta <= 1:
            _refuse(f"must be above 1, got {self.rope_theta!r}.", "rope_parameters.rope_theta")

    @property
    def cos_sin_factor(self) -> float:
        """Factor on cos and sin: ``attention_factor`` if given, else the ratio of the two mscales (1 for the release)."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.yarn_mscale(self.mscale) / self.yarn_mscale(self.mscale_all_dim)
        return self.yarn_mscale(1.0)

    def yarn_mscale(self, mscale: float) -> float:
        """YaRN's attention magnitude ``0.1 * mscale * ln(factor) + 1``."""
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class TextConfig:
    """Shapes and constants of the text network.

    ``softmax_scale`` says how attention scores are scaled: ``plain`` is ``1 / sqrt(qk_head_dim)``, what the model was trained with;
    ``mscale`` multiplies that by YaRN's magnitude squared, as transformers 5.23 does (spec section 0.1).
    """

    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 12288
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    n_shared_experts: int = 1
    n_routed_experts: int = 128
    num_experts_per_tok: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    q_lora_rank: int = 1024
    kv_lora_rank: int = 256
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    max_position_embeddings: int = 1048576
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    pad_token_id: int | None = 11
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)
    softmax_scale: SoftmaxScale = "plain"

    def __post_init__(self) -> None:
        _check_types(self, prefix="")
        if self.softmax_scale not in get_args(SoftmaxScale):
            raise WeightsError(f"is {self.softmax_scale!r}.", key="softmax_scale", fix="use plain or mscale.")
        if self.num_hidden_layers > _MAX_LAYERS:
            _refuse(f"must be at most {_MAX_LAYERS}, got {self.num_hidden_layers}.", "num_hidden_layers")
        if self.num_hidden_layers * self.n_routed_experts > _MAX_EXPERTS:
            _refuse(f"times num_hidden_layers must be at most {_MAX_EXPERTS:,}, got {self.n_routed_experts:,}.", "n_routed_experts")
        if self.num_key_value_heads != self.num_attention_heads:
            _refuse(
                f"must equal num_attention_heads, {self.num_attention_heads}: each latent is expanded to every head.", "num_key_value_heads"
            )
        if self.num_experts_per_tok > self.n_routed_experts:
            _refuse(f"must be at most n_routed_experts, {self.n_routed_experts}, got {self.num_experts_per_tok}.", "num_experts_per_tok")
        if self.qk_rope_head_dim % 2:
            _refuse(f"must be even, because rotary lanes come in pairs; got {self.qk_rope_head_dim}.", "qk_rope_head_dim")
        partial = self.rope_parameters.partial_rotary_factor
        if partial is not None and int(self.qk_head_dim * partial) != self.qk_rope_head_dim:
            _refuse(f"gives another rotary width than qk_rope_head_dim, {self.qk_rope_head_dim}.", "rope_parameters.partial_rotary_factor")

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head: without position, then with."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Values that attention caches per token and layer: the latent, then the rotated key part."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def attention_scale(self) -> float:
        """Factor on attention scores."""
        scale = self.qk_head_dim**-0.5
        if self.softmax_scale == "mscale" and self.rope_parameters.mscale_all_dim:
            scale *= self.rope_parameters.yarn_mscale(self.rope_parameters.mscale_all_dim) ** 2
        return scale

    def num_parameters(self) -> int:
        """Parameters of the network, embedding and head included (spec section 1.3)."""
        d, heads = self.hidden_size, self.num_attention_heads
        attention = d * self.q_lora_rank + self.q_lora_rank * heads * self.qk_head_dim + d * self.latent_dim
        attention += self.kv_lora_rank * heads * (self.qk_nope_head_dim + self.v_head_dim) + heads * self.v_head_dim * d
        norms = 2 * d + self.q_lora_rank + self.kv_lora_rank
        moe = self.n_routed_experts * d + 3 * d * self.moe_intermediate_size * (self.n_routed_experts + self.n_shared_experts)
        return self.num_hidden_layers * (attention + norms + moe) + d + 2 * self.vocab_size * d

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain JSON values, ``softmax_scale`` included; :meth:`from_dict` gives back an equal configuration."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, softmax_scale: SoftmaxScale | None = None) -> TextConfig:
        """Read a ``text_config`` mapping; what is absent takes the release's value.

        Args:
            values: parsed JSON or YAML. Keys that do not touch the arithmetic are skipped; unknown ones are skipped with a warning.
            softmax_scale: overrides the entry of that name.

        Raises:
            WeightsError: a value of the wrong type, or an architecture that this network does not compute, with its key.
        """
        for key, expected in _FIXED.items():
            if key in values and values[key] is not None and values[key] != expected:
                _refuse(f"is {values[key]!r}; this network computes {expected!r} only.", key)
        names = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names - set(_FIXED) - _BOOKKEEPING):
            _LOG.warning("model configuration: ignoring unknown keys %s", ", ".join(unknown))
        known = {key: value for key, value in values.items() if key in names}
        if known.get("num_key_value_heads") is None:
            known["num_key_value_heads"] = known.get("num_attention_heads", cls.num_attention_heads)
        if known.get("rope_parameters") is None:
            known.pop("rope_parameters", None)
        else:
            known["rope_parameters"] = _read_rope(known["rope_parameters"], outer_theta=values.get("rope_theta"))
        if softmax_scale is not None:
            known["softmax_scale"] = softmax_scale
        return cls(**known)


def _read_rope(values: Any, outer_theta: Any) -> RopeParameters:
    if not isinstance(values, Mapping):
        _refuse("must be a mapping.", "rope_parameters")
    names = {item.name for item in dataclasses.fields(RopeParameters)}
    if unknown := sorted(set(values) - names - {"type"}):
        _LOG.warning("model configuration: ignoring unknown keys rope_parameters.{%s}", ", ".join(unknown))
    older = {"rope_type": values.get("type"), "rope_theta": outer_theta}  # spellings of earlier transformers
    known: dict[str, Any] = {key: value for key, value in {**older, **values}.items() if key in names and value is not None}
    for key in ("rope_type", "rope_theta", "factor", "original_max_position_embeddings", "llama_4_scaling_beta"):
        if key not in known:
            raise WeightsError("is missing.", key=f"rope_parameters.{key}", fix="copy it from the model's own config.json.")
    absent_means_none: dict[str, Any] = dict.fromkeys(("mscale", "mscale_all_dim", "max_position_embeddings"))  # not the release's value
    return RopeParameters(**(absent_means_none | known))


def _check_types(instance: TextConfig | RopeParameters, prefix: str) -> None:
    """Refuse values that are not what the fields' annotations say; numbers are positive, save for token ids and a few factors."""
    for item in dataclasses.fields(instance):
        value: Any = getattr(instance, item.name)
        expected = str(item.type).removesuffix(" | None")
        if value is None and str(item.type).endswith("None"):
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if expected == "float" and not is_number:
            _refuse(f"must be a number, got {value!r}.", prefix + item.name)
        if isinstance(value, float | int) and expected == "float" and value <= 0 and item.name not in _MAY_BE_ZERO:
            _refuse(f"must be above 0, got {value!r}.", prefix + item.name)
        smallest = 0 if item.name.endswith("_token_id") else 1
        if expected == "int" and not (is_number and isinstance(value, int) and smallest <= value <= _MAX_SIZE):
            _refuse(f"must be an integer from {smallest} to {_MAX_SIZE}, got {value!r:.40}.", prefix + item.name)
        if expected == "bool" and not isinstance(value, bool):
            _refuse(f"must be true or false, got {value!r}.", prefix + item.name)


def _refuse(message: str, key: str) -> NoReturn:
    raise WeightsError(message, key=key, fix="correct the value, or use the configuration that belongs to the model.")
