"""Cross-entropy of the next token, straight from hidden states, through the network's head. The training loop calls ``next_token_loss``.

Exercise it: ``pytest tests/ms4_train/training/test_loss.py``.

Shapes: t = tokens of the batch, d = hidden size, v = vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from ms4_kernels.cross_entropy import IGNORED_TARGET, linear_cross_entropy
from ms4_train.model.network import LanguageHead

__all__ = ["IGNORED_TARGET", "next_token_loss"]


def next_token_loss(head: LanguageHead, hidden_td: Tensor, target_t: Tensor, *, chunk_tokens: int = 1024) -> Tensor:
    """``linear_cross_entropy`` through the head module [V, d], in one call of it.

    One call whatever the number of chunks: under ZeRO 3 the call is collective (it gathers the head's weight), and ranks differ in chunks.
    """

    def loss(hidden_td: Tensor, head_vd: Tensor, low_rank: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return linear_cross_entropy(hidden_td, head_vd, target_t, low_rank=low_rank, chunk_tokens=chunk_tokens)

    return head(hidden_td, loss)
