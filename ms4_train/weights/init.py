"""``configs/models/*.yaml`` -> a fresh checkpoint with random weights.

A model file holds the text configuration flat, under Hugging Face's names. Exercise it:
``ms4 model init configs/models/tiny.yaml OUT`` and ``pytest tests/ms4_train/weights/test_init.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt, ValidationError
from torch import Tensor

from ms4_train.config.nodes import read_document
from ms4_train.config.problems import combine, problems_of
from ms4_train.config.schema import Section
from ms4_train.errors import ConfigError, TokenizerError, WeightsError
from ms4_train.model import TextConfig, init_parameter
from ms4_train.untrusted import parse_json, read_bytes
from ms4_train.weights.reading.loading import expected_shapes
from ms4_train.weights.writer import MAX_TOKENIZER_BYTES, save_model

Positive = Annotated[float, Field(gt=0)]


class RopeSection(Section):
    """Rotary embedding and query scale, as in Hugging Face's ``rope_parameters``."""

    rope_type: Literal["yarn"] = "yarn"
    rope_theta: Positive = 10000.0
    factor: Positive = 128.0
    original_max_position_embeddings: PositiveInt = 8192
    max_position_embeddings: PositiveInt | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0
    attention_factor: Positive | None = None
    llama_4_scaling_beta: float = 0.1
    partial_rotary_factor: Positive | None = None
    truncate: bool = True


class ModelFile(Section):
    """A model file. Sizes have no default; the rest has the release's values."""

    model_type: Literal["mistral4"] = "mistral4"
    vocab_size: PositiveInt | None = Field(None, description="Needed without a tokenizer; with one, the tokenizer's size is used.")
    hidden_size: PositiveInt
    moe_intermediate_size: PositiveInt = Field(description="Width of each routed expert, and of the shared one.")
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = Field(None, description="Equal to num_attention_heads.")
    n_routed_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    q_lora_rank: PositiveInt
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt
    n_shared_experts: PositiveInt = 1
    intermediate_size: PositiveInt | None = Field(None, description="Width of dense layers, which this model does not have.")
    norm_topk_prob: bool = True
    routed_scaling_factor: Positive = 1.0
    max_position_embeddings: PositiveInt = 1048576
    initializer_range: Positive = 0.02
    rms_norm_eps: Positive = 1e-6
    pad_token_id: int = Field(11, ge=0)
    bos_token_id: int = Field(1, ge=0)
    eos_token_id: int = Field(2, ge=0)
    rope_parameters: RopeSection = RopeSection()
    softmax_scale: Literal["plain", "mscale"] = "plain"


def read_model_file(path: str | Path, *, vocab_size: int | None = None) -> TextConfig:
    """Read a model file.

    Args:
        path: the YAML file.
        vocab_size: size of the tokenizer the model is made for; takes the place of the file's.

    Raises:
        ConfigError: with file, line, key and fix.
    """
    document = read_document(path)
    try:
        model_file = ModelFile.model_validate(document.values, strict=True)
    except ValidationError as error:
        raise combine(problems_of(error, ModelFile, document, {}), document.file) from None
    values: dict[str, Any] = model_file.model_dump(exclude_none=True)
    values.setdefault("num_key_value_heads", model_file.num_attention_heads)
    values["rope_parameters"].setdefault("max_position_embeddings", model_file.max_position_embeddings)
    if vocab_size is not None:
        values["vocab_size"] = vocab_size
    elif model_file.vocab_size is None:
        raise ConfigError("this key is missing.", file=path, key="vocab_size", fix="add it, or give a tokenizer.")
    try:
        return TextConfig.from_dict(values)
    except WeightsError as error:
        key = tuple((error.key or "").split("."))
        raise ConfigError(error.message, file=path, line=document.line_of(key), key=error.key, fix=error.fix) from None


def init_checkpoint(
    model_yaml: str | Path, out: str | Path, *, seed: int, tokenizer_file: str | Path | None, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Write a fresh checkpoint with random weights; each parameter's values depend on the seed and its name only.

    Args:
        model_yaml: the model file.
        out: folder to make; refused when it holds anything.
        seed: of the random weights.
        tokenizer_file: a ``tekken.json``; copied into the folder, and its size is the model's vocabulary.
        dtype: type of the stored weights.

    Returns:
        ``out``.

    Raises:
        ConfigError: the model file cannot be used.
        TokenizerError: the tokenizer file does not say its size.
        StorageError: the disk is full or ``out`` is not empty.
    """
    tokenizer = None if tokenizer_file is None else Path(tokenizer_file)
    config = read_model_file(model_yaml, vocab_size=None if tokenizer is None else tokenizer_size(tokenizer))
    save_model(_random_tensors(config, seed), out, config=config, dtype=dtype, tokenizer_file=tokenizer, replace=False)
    return Path(out)


def tokenizer_size(file: Path) -> int:
    """Tokens of a ``tekken.json``, special ones included.

    Raises:
        TokenizerError: the file does not say so.
        UntrustedInputError: the file cannot be read.
    """
    content = parse_json(read_bytes(file, max_bytes=MAX_TOKENIZER_BYTES), file=file)
    config = content.get("config") if isinstance(content, dict) else None
    size = config.get("default_vocab_size") if isinstance(config, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise TokenizerError(
            "does not say its size.",
            file=file,
            key="config.default_vocab_size",
            fix="give a tekken.json, for instance from 'ms4 model tokenizer'.",
        )
    return size


def _random_tensors(config: TextConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    for name, shape in expected_shapes(config).items():
        tensor = torch.empty(shape)
        init_parameter(name, tensor, seed, config.initializer_range)
        yield name, tensor
