"""``configs/models/*.yaml`` -> a fresh checkpoint with random weights.

A model file holds the text configuration flat, under Hugging Face's names, and that of the vision, if any, in a section of its own.
Exercise it: ``ms4 model init configs/models/tiny.yaml OUT`` and ``pytest tests/ms4_train/weights/test_init.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt, ValidationError
from torch import Tensor

from ms4_train.config.nodes import Document, read_document
from ms4_train.config.problems import combine, problems_of
from ms4_train.config.schema import Section
from ms4_train.errors import ConfigError, TokenizerError, WeightsError
from ms4_train.model import TextConfig, VisionConfig, init_parameter
from ms4_train.untrusted import parse_json, read_bytes
from ms4_train.weights.layouts.pieces import ModelConfig
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


class VisionSection(Section):
    """Tower, patch merger and projector. Sizes have no default; the rest has the release's values."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    head_dim: PositiveInt | None = Field(None, description="hidden_size / num_attention_heads.")
    num_channels: PositiveInt = 3
    image_size: PositiveInt = Field(1540, description="Longest side of an image in pixels; larger ones are scaled down.")
    patch_size: PositiveInt = 14
    rope_theta: Positive = 10000.0
    spatial_merge_size: PositiveInt = Field(2, description="This many rows and columns of patches make one image token.")
    image_token_index: int = Field(10, gt=0, description="Id of the token whose embeddings are the image's.")


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
    vision: VisionSection | None = Field(None, description="Without it the model is text only.")


def read_model_file(path: str | Path, *, vocab_size: int | None = None) -> TextConfig:
    """The text network of a model file. Arguments and errors as for ``read_whole_model_file``."""
    return read_whole_model_file(path, vocab_size=vocab_size).text


def read_whole_model_file(path: str | Path, *, vocab_size: int | None = None) -> ModelConfig:
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
    values: dict[str, Any] = model_file.model_dump(exclude_none=True, exclude={"vision"})
    values.setdefault("num_key_value_heads", model_file.num_attention_heads)
    values["rope_parameters"].setdefault("max_position_embeddings", model_file.max_position_embeddings)
    if vocab_size is not None:
        values["vocab_size"] = vocab_size
    elif model_file.vocab_size is None:
        raise ConfigError("this key is missing.", file=path, key="vocab_size", fix="add it, or give a tokenizer.")
    try:
        text = TextConfig.from_dict(values)
    except WeightsError as error:
        raise _at_line(error, document, error.key or "") from None
    if model_file.vision is None:
        return ModelConfig(text)
    try:
        return ModelConfig(text, _vision_config(model_file.vision, text))
    except WeightsError as error:
        raise _at_line(error, document, f"vision.{error.key}") from None


def _vision_config(section: VisionSection, text: TextConfig) -> VisionConfig:
    values = section.model_dump(exclude_none=True)
    values.setdefault("head_dim", section.hidden_size // section.num_attention_heads)
    if section.image_token_index >= text.vocab_size:
        what = f"is {section.image_token_index}, but there are {text.vocab_size} tokens."
        raise WeightsError(what, key="image_token_index", fix="write the id that the tokenizer has for [IMG].")
    return VisionConfig(**values)


def _at_line(error: WeightsError, document: Document, key: str) -> ConfigError:
    return ConfigError(error.message, file=document.file, line=document.line_of(tuple(key.split("."))), key=key or None, fix=error.fix)


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
    config = read_whole_model_file(model_yaml, vocab_size=None if tokenizer is None else tokenizer_size(tokenizer))
    tensors = random_tensors(expected_shapes(config.text, config.vision), seed, config.text.initializer_range)
    save_model(tensors, out, config=config.text, vision=config.vision, dtype=dtype, tokenizer_file=tokenizer, replace=False)
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


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int, std: float) -> Iterator[tuple[str, Tensor]]:
    """Fresh parameters in fp32 by ``init_parameter``, one at a time."""
    for name, shape in shapes.items():
        tensor = torch.empty(shape)
        init_parameter(name, tensor, seed, std)
        yield name, tensor
