"""What a checkpoint is, from its configuration and headers alone: no tensor is read but for the fingerprint's samples.

Exercise it: ``ms4 model info FOLDER`` and ``pytest tests/ms4_train/weights/test_summary.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ms4_train.model import TextConfig
from ms4_train.weights.fingerprint import base_fingerprint
from ms4_train.weights.loading import expected_shapes
from ms4_train.weights.model_config import read_config
from ms4_train.weights.reader import check_tensors, scan_checkpoint
from ms4_train.weights.writer import TOKENIZER_FILE


@dataclass(frozen=True)
class Summary:
    """A checkpoint in numbers. ``dtype`` is the type most stored bytes have."""

    layout: str
    files: int
    num_bytes: int
    dtype: str
    parameters: int
    active_parameters: int
    vision_tensors: int
    has_tokenizer: bool
    fingerprint: str
    config: TextConfig


def active_parameters(config: TextConfig) -> int:
    """Parameters that act on one token, embedding and head included (6.633 billion for the release, spec section 1.3)."""
    per_expert = 3 * config.hidden_size * config.moe_intermediate_size
    idle = config.num_hidden_layers * (config.n_routed_experts - config.num_experts_per_tok) * per_expert
    return config.num_parameters() - idle


def summarise(folder: str | Path) -> Summary:
    """Check a checkpoint's headers against its configuration and describe it.

    Raises:
        WeightsError: the configuration or a tensor is missing, unexpected or misshapen.
        UntrustedInputError: a file is cut off or damaged.
    """
    config = read_config(folder)
    checkpoint = scan_checkpoint(folder)
    check_tensors(checkpoint, expected_shapes(config))
    return Summary(
        layout=checkpoint.layout,
        files=len(checkpoint.files),
        num_bytes=checkpoint.num_bytes,
        dtype=str(checkpoint.dtype).removeprefix("torch."),
        parameters=config.num_parameters(),
        active_parameters=active_parameters(config),
        vision_tensors=len(checkpoint.vision_names),
        has_tokenizer=(Path(folder) / TOKENIZER_FILE).is_file(),
        fingerprint=base_fingerprint(folder),
        config=config,
    )
