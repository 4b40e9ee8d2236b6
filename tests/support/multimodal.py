"""Tiny models with a vision tower, images for them, and their twins in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from support.models import hf_config, tiny_config
from torch import Tensor

from ms4_train.model import ImageBatch, Mistral3ForConditionalGeneration, TextConfig, VisionConfig, init_weights

IMG, IMG_BREAK, IMG_END = 10, 12, 13
PART_NAMES = (
    ("model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def tiny_vision(**overrides: Any) -> VisionConfig:
    """Two layers of width 64 with 4 heads; patches and cells are the release's. Any field of VisionConfig may be overridden."""
    values: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    return VisionConfig(**values | overrides)


def tiny_multimodal(
    config: TextConfig | None = None,
    vision: VisionConfig | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    projector_norm_eps: float | None = None,
) -> Mistral3ForConditionalGeneration:
    """Return a model with random weights, norms too, in evaluation mode.

    The projector norm's eps is transformers' (the text network's), so that :func:`hf_multimodal_twin` computes the same.
    """
    config = config or tiny_config()
    eps = config.rms_norm_eps if projector_norm_eps is None else projector_norm_eps
    model = Mistral3ForConditionalGeneration(config, vision or tiny_vision(), projector_norm_eps=eps).to(dtype)
    init_weights(model, seed, std=0.15)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # gradients of norms that are all ones would hide a norm in the wrong place
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        elif name == "vision_tower.patch_conv.weight":
            parameter.data *= 0.5  # values of a patch are many
    return model.eval()


def hf_name(name: str) -> str:
    """What transformers calls this parameter in memory."""
    return next((theirs + name.removeprefix(ours) for ours, theirs in PART_NAMES if name.startswith(ours)), name)


def hf_multimodal_config(config: TextConfig, vision: VisionConfig) -> Any:
    """Return transformers' configuration with the same arithmetic, softmax scale included."""
    from transformers import Mistral3Config, PixtralVisionConfig

    tower = PixtralVisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_attention_heads=vision.num_attention_heads,
        num_channels=vision.num_channels,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_act="silu",
        rope_parameters={"rope_type": "axial", "rope_theta": vision.rope_theta},
        attn_implementation="eager",
    )
    return Mistral3Config(
        text_config=hf_config(config),
        vision_config=tower,
        image_token_index=vision.image_token_index,
        spatial_merge_size=vision.spatial_merge_size,
        tie_word_embeddings=False,
        attn_implementation="eager",
        experts_implementation="eager",
    )


def hf_multimodal_twin(model: Mistral3ForConditionalGeneration) -> Any:
    """Return transformers' Mistral3ForConditionalGeneration with the same weights, in evaluation mode."""
    from transformers import Mistral3ForConditionalGeneration as Oracle

    oracle: Any = Oracle(hf_multimodal_config(model.config, model.vision_config))
    oracle.to(model.lm_head.weight.dtype)
    oracle.load_state_dict({hf_name(name): value for name, value in model.state_dict().items()}, strict=True)
    return oracle.eval()


def random_pixels(
    cells: Sequence[tuple[int, int]], vision: VisionConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Preprocessed images [C, H, W] of (rows, columns) cells each."""
    generator, side = torch.Generator().manual_seed(seed), vision.patch_size * vision.spatial_merge_size
    return [torch.randn(vision.num_channels, rows * side, columns * side, generator=generator).to(dtype) for rows, columns in cells]


def hf_images(pixels: Sequence[Tensor]) -> dict[str, Tensor]:
    """The same images as transformers takes them: padded to one size, with their own sizes beside."""
    sizes = torch.tensor([image.shape[1:] for image in pixels])
    height, width = sizes.amax(dim=0).tolist()
    padded = [torch.nn.functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in pixels]
    return {"pixel_values": torch.stack(padded), "image_sizes": sizes}


def image_ids(rows: int, columns: int) -> list[int]:
    """The token ids of an image of this many cells."""
    return ([IMG] * columns + [IMG_BREAK]) * (rows - 1) + [IMG] * columns + [IMG_END]


def sequence_ids(parts: Sequence[int | tuple[int, int]], vocab_size: int, seed: int = 0) -> Tensor:
    """Token ids of a sequence of texts (a number of random tokens) and images (rows and columns of cells)."""
    generator, ids = torch.Generator().manual_seed(seed), []
    for part in parts:
        ids += image_ids(*part) if isinstance(part, tuple) else torch.randint(20, vocab_size, (part,), generator=generator).tolist()
    return torch.tensor(ids)


def cells_of(parts: Sequence[int | tuple[int, int]]) -> list[tuple[int, int]]:
    """The images of such a sequence."""
    return [part for part in parts if isinstance(part, tuple)]


def image_batch(pixels: Sequence[Tensor], vision: VisionConfig) -> ImageBatch:
    """The images as our model takes them."""
    return ImageBatch.from_pixels(pixels, vision.patch_size)
