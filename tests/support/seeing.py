"""A row with two images, and its logits here and in transformers: the whole model of a checkpoint put to the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.multimodal import cells_of, hf_images, random_pixels, sequence_ids
from torch import Tensor

from ms4_train.model import ImageBatch, Mistral3ForConditionalGeneration, Mistral4ForCausalLM, SequenceLayout, VisionConfig

ROW: tuple[int | tuple[int, int], ...] = (3, (1, 2), 4, (2, 2), 3)
"""Text before, between and behind two images of different sizes."""


def two_images() -> list[Tensor]:
    """The images of the row."""
    return random_pixels(cells_of(ROW), VisionConfig(), seed=7)


@torch.no_grad()
def our_image_logits(model: Mistral4ForCausalLM, images: list[Tensor] | None = None) -> Tensor:
    """Logits of the row, with transformers' epsilon in the projector's norm (spec section 2.3)."""
    assert isinstance(model, Mistral3ForConditionalGeneration)
    model.multi_modal_projector.norm.eps = model.config.rms_norm_eps
    ids_t = sequence_ids(ROW, model.config.vocab_size)
    pixels = [image.to(model.lm_head.weight.dtype) for image in (two_images() if images is None else images)]
    layout = SequenceLayout.from_lengths([len(ids_t)])
    return model.logits(model(ids_t, layout, images=ImageBatch.from_pixels(pixels, model.vision_config.patch_size)))


@torch.no_grad()
def their_image_logits(folder: Path) -> Tensor:
    """The same from transformers' own loading of a folder, in fp32; what it does not load, or does not know, is an error."""
    from transformers import Mistral3ForConditionalGeneration as Oracle

    loader: Any = Oracle
    oracle, report = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not any(report.values()), report
    ids_t = sequence_ids(ROW, oracle.config.text_config.vocab_size)
    return oracle.eval()(input_ids=ids_t[None], **hf_images(two_images()), use_cache=False).logits[0]
