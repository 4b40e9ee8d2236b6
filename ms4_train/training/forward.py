"""One batch through the model, with its images where it has some. Training and the validation loss go through here.

Exercise it: ``pytest tests/ms4_train/training/test_forward.py``.

Shapes: t = tokens of the batch, d = hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ms4_train.chat import ChatTokenizer
from ms4_train.data import PackedBatch
from ms4_train.errors import TokenizerError, TrainingError
from ms4_train.model import Mistral3ForConditionalGeneration, Mistral4ForCausalLM, SequenceLayout


def require_vision(model: Mistral4ForCausalLM, tokenizer: ChatTokenizer) -> None:
    """Refuse a model that cannot see the images of its rows, or would see them otherwise than they were cut.

    Raises:
        TrainingError: it has no vision tower.
        TokenizerError: tokenizer and tower do not belong together.
    """
    if not isinstance(model, Mistral3ForConditionalGeneration):
        raise TrainingError(
            "rows hold images, but the model has no vision tower.",
            key="model.path",
            fix="name a model folder with vision weights (`ms4 model add-vision` adds new ones), or leave these rows out.",
        )
    vision, spec = model.vision_config, tokenizer.image_spec
    assert spec is not None, "rows with images, but a tokenizer that knows none"
    spec.check_model(patch_size=vision.patch_size, merge=vision.spatial_merge_size, max_size=vision.image_size)
    if tokenizer.ids.img != vision.image_token_index:
        raise TokenizerError(
            f"[IMG] is token {tokenizer.ids.img}, but {vision.image_token_index} in the model.",
            file=tokenizer.path,
            key="image_token_index",
            fix="use the model's own tekken.json.",
        )


def hidden_states(model: Mistral4ForCausalLM, batch: PackedBatch, device: torch.device) -> Tensor:
    """Final hidden states [T, d].

    Raises:
        TrainingError: the batch has images, and the model no vision tower.
    """
    layout = SequenceLayout.from_lengths(batch.lengths)
    if batch.images is None:
        return model(batch.input_ids_t.to(device), layout)
    if not isinstance(model, Mistral3ForConditionalGeneration):
        # A stream may show its first image late.
        raise TrainingError(
            f"rows hold images, but the model has no vision tower. First rows of the batch: {', '.join(batch.row_ids[:4])}.",
            key="model.path",
            fix="name a model folder with vision weights, or leave these rows out.",
        )
    return model(batch.input_ids_t.to(device), layout, images=batch.images.to(device))
