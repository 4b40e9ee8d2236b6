"""The batch that the training loop and the evaluation of the loss consume.

Legend of shape suffixes: t = all tokens of the batch on one flat axis, document behind document, without padding.
Exercise it: ``pytest tests/ms4_train/data/test_batch.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ms4_train.data.rows import Document
from ms4_train.model.images import ImageBatch

NO_LOSS = -100
"""Target of a position whose next token is not trained (the value that torch's cross-entropy ignores by default)."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Documents on one flat token axis. Attention must not cross the document boundaries that ``lengths`` gives."""

    input_ids_t: torch.Tensor
    """int64."""
    target_ids_t: torch.Tensor
    """int64, already shifted: the token after ``input_ids_t[i]`` in the same document, or ``NO_LOSS``."""
    lengths: tuple[int, ...]
    """Tokens of each document."""
    row_ids: list[str]
    """Where each document comes from."""
    num_trained: int
    """Targets that carry loss."""
    images: ImageBatch | None = None
    """The preprocessed images of all documents, in the order of their tokens; None where there are none."""

    @property
    def num_tokens(self) -> int:
        """All tokens of the batch."""
        return int(self.input_ids_t.numel())


def make_batch(documents: Sequence[Document], images: ImageBatch | None = None) -> PackedBatch:
    """Put documents behind each other and shift the targets inside each one; the last token of a document predicts nothing.

    Args:
        documents: at least one.
        images: all images of ``documents``, preprocessed, document behind document.
    """
    assert sum(len(document.images) for document in documents) == (0 if images is None else len(images.grids))
    inputs: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for document in documents:
        tokens_t = document.token_ids_t.astype(np.int64)
        target_t = np.full_like(tokens_t, NO_LOSS)
        target_t[:-1] = np.where(document.loss_mask_t[1:], tokens_t[1:], NO_LOSS)
        inputs.append(tokens_t)
        targets.append(target_t)
    return PackedBatch(
        input_ids_t=torch.from_numpy(np.concatenate(inputs)),
        target_ids_t=torch.from_numpy(np.concatenate(targets)),
        lengths=tuple(len(document) for document in documents),
        row_ids=[document.row_id for document in documents],
        num_trained=sum(document.num_trained for document in documents),
        images=images,
    )


def filler_batch(bos_id: int, eos_id: int) -> PackedBatch:
    """A batch of two tokens without loss, for a rank that has nothing left while others still take part in collective operations."""
    document = Document("filler", np.array([bos_id, eos_id], dtype=np.int32), np.zeros(2, dtype=np.bool_))
    return make_batch([document])
