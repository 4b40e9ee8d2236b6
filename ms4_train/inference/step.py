"""What one step of the engine computes, and who computes it: pieces of sequences go to a runner, hidden states come back.

Two runners do the same: ``native_runner`` on a CPU, ``module_runner`` anywhere. Exercise it: ``pytest tests/ms4_train/inference``.

Shape suffixes: t new tokens of all pieces, r wanted rows, d hidden, v vocabulary, n image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ms4_train.model.images import ImageBatch


@dataclass(frozen=True, slots=True)
class ImagePlaces:
    """Embeddings in the places of a piece's image tokens.

    Attributes:
        offsets: of the tokens within the piece, ascending.
        features_nd: their embeddings, in the same order.
    """

    offsets: tuple[int, ...]
    features_nd: Tensor


@dataclass(frozen=True, slots=True)
class StepPiece:
    """New tokens of one sequence.

    Attributes:
        token_ids: to compute, at least one.
        start: position of the first; the cache holds all before it.
        blocks: the sequence's cache blocks in order, enough for ``start + len(token_ids)`` tokens. Those that new tokens are written to
            belong to this sequence alone.
        wanted: offsets of the tokens whose hidden states are wanted, ascending.
        adapter: name of a loaded adapter; None: the model as it stands.
        images: None where the piece has no image tokens of the prompt.
    """

    token_ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    wanted: Sequence[int] = ()
    adapter: str | None = None
    images: ImagePlaces | None = None


class Runner(Protocol):
    """Computes steps with one model and one cache; opened before the first step, closed after the last."""

    @property
    def is_invariant(self) -> bool:
        """Whether a token's result is the same bits whatever else is in the step; what feeds it must then not depend on company either."""
        ...

    def open(self) -> None:
        """Prepare the model: evaluation mode, whatever is computed once. Weights must not change until :meth:`close`."""
        ...

    def close(self) -> None:
        """Leave the model as it was."""
        ...

    def run(self, pieces: Sequence[StepPiece]) -> Tensor:
        """Compute the pieces and write their latents to the cache.

        Returns:
            [R, d], after the final norm: the wanted rows of all pieces in order; [0, d] where none is wanted.
        """
        ...

    def logits(self, hidden_rd: Tensor, adapters: Sequence[str | None]) -> Tensor:
        """Next-token logits, fp32 [R, V], of rows from :meth:`run`; ``adapters`` are those of the rows."""
        ...

    def image_features(self, images: ImageBatch, adapter: str | None) -> Tensor:
        """Embeddings of all image tokens of one request, [N, d]."""
        ...
