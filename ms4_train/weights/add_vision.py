"""A text checkpoint -> a multimodal one: its text network as it is, with a fresh vision tower and projector before it.

Exercise it: ``ms4 model add-vision BASE OUT --vision configs/models/tiny-vision.yaml`` and
``pytest tests/ms4_train/weights/test_add_vision.py``.

Not covered: teaching it to see. What comes out answers text as before and knows nothing of images.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from ms4_train.errors import ConfigError, WeightsError
from ms4_train.weights.init import random_tensors, read_whole_model_file
from ms4_train.weights.layouts.tables import is_vision_name
from ms4_train.weights.reading.checkpoint import open_checkpoint
from ms4_train.weights.reading.loading import expected_shapes, load_model
from ms4_train.weights.writer import save_model


def add_vision(base: str | Path, out: str | Path, *, vision_yaml: str | Path, seed: int) -> Path:
    """Write ``base`` with a random tower and projector.

    Its text keeps values and fingerprint, so that adapters of it still fit.

    Args:
        base: a text checkpoint in any layout; FP8 and NVFP4 weights are dequantised to the type of its other ones.
        out: folder to make; refused when it holds anything.
        vision_yaml: a model file with a ``vision`` section, the only part that is used.
        seed: of the random weights.

    Returns:
        ``out``.

    Raises:
        ConfigError: the model file cannot be used, or has no vision.
        WeightsError: the base cannot be read, or has vision already.
        StorageError: the disk is full or ``out`` is not empty.
    """
    checkpoint = open_checkpoint(base)
    if checkpoint.config.vision is not None:
        raise WeightsError("has a vision tower already.", file=checkpoint.folder, fix="give a text model.")
    text = checkpoint.config.text
    vision = read_whole_model_file(vision_yaml, vocab_size=text.vocab_size).vision
    if vision is None:
        raise ConfigError(
            "this section is missing.", file=vision_yaml, key="vision", fix="give a file such as configs/models/tiny-vision.yaml."
        )
    model = load_model(base, dtype=checkpoint.dtype)
    fresh = {name: shape for name, shape in expected_shapes(text, vision).items() if is_vision_name(name)}
    tensors = itertools.chain(model.state_dict().items(), random_tensors(fresh, seed, text.initializer_range))
    save_model(tensors, out, config=text, vision=vision, dtype=checkpoint.dtype, base=checkpoint, replace=False)
    return Path(out)
