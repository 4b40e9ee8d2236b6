"""How likely the model found tokens: log probabilities, ranks and the most likely alternatives, of the raw distribution.

Raw means before bias, penalties, constraints and temperature. Ids past the vocabulary, which no token stands for, have no probability.
The sum over the vocabulary is one of integers (``drawing.weights``), so that company does not change it.
Exercise it: ``pytest tests/ms4_train/inference/test_logprobs.py``.

Shape suffixes: n rows, t tokens of a prompt, v vocabulary, k alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ms4_train.inference.drawing import weight_bits, weights
from ms4_train.inference.request import TokenLogprobs

_VALUES_AT_ONCE = 1 << 20
"""Logits that are looked at at once; they are widened to fp64."""


def token_logprobs(logits_nv: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[TokenLogprobs]:
    """Log probabilities of one token per row, exact to about 1e-9.

    Args:
        logits_nv: floating, one column per token of the vocabulary. Where a row holds NaN or infinity, its numbers say so.
        token_ids: of each row.
        tops: how many most likely tokens each row shall name.
    """
    found: list[TokenLogprobs] = []
    rows_at_once = max(1, _VALUES_AT_ONCE // max(1, logits_nv.shape[1]))
    for start in range(0, len(logits_nv), rows_at_once):
        rows = slice(start, start + rows_at_once)
        found += _some_logprobs(logits_nv[rows], token_ids[rows], tops[rows])
    return found


def _some_logprobs(logits_nv: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[TokenLogprobs]:
    token_n1 = torch.tensor(token_ids, dtype=torch.int64, device=logits_nv.device)[:, None]
    logit_n1 = logits_nv.gather(1, token_n1)
    total_n = weights(logits_nv).sum(dim=-1).to(torch.float64) * 2.0 ** -weight_bits(logits_nv.shape[1])
    scale_n = total_n.log() + logits_nv.amax(dim=-1).to(torch.float64)
    logprob_n = (logit_n1[:, 0].to(torch.float64) - scale_n).tolist()
    rank_n = (logits_nv >= logit_n1).sum(dim=-1).tolist()
    most = min(max(tops, default=0), logits_nv.shape[1])
    top_n = _top(logits_nv, scale_n.tolist(), most) if most else [()] * len(tops)
    rows = zip(token_ids, logprob_n, rank_n, top_n, tops, strict=True)
    return [TokenLogprobs(token_id, logprob, rank, top[:count]) for token_id, logprob, rank, top, count in rows]


def _top(logits_nv: Tensor, scale_n: list[float], most: int) -> list[tuple[tuple[int, float], ...]]:
    """The most likely tokens of each row by falling logit, lower id first on a tie."""
    # Nobody's top-k says which of several equal tokens it takes, so only its least value counts here.
    is_top_nv = logits_nv >= _nth_value(logits_nv, most)
    row_k, token_k = is_top_nv.nonzero().unbind(1)
    found: list[list[tuple[float, int]]] = [[] for _ in scale_n]
    for row, token_id, logit in zip(row_k.tolist(), token_k.tolist(), logits_nv[row_k, token_k].tolist(), strict=True):
        found[row].append((-logit, token_id))
    return [
        tuple((token_id, -negative - scale) for negative, token_id in sorted(pairs)[:most])
        for pairs, scale in zip(found, scale_n, strict=True)
    ]


def _nth_value(logits_nv: Tensor, n: int) -> Tensor:
    """The n-th highest value of each row, [n, 1]."""
    if logits_nv.device.type == "cpu" and logits_nv.dtype == torch.float32:
        return torch.from_numpy(np.partition(logits_nv.detach().numpy(), -n, axis=-1)[:, -n, None])
    return torch.topk(logits_nv, n, dim=-1).values[:, -1:]


def prompt_logprobs(logits_tv: Tensor, next_ids_t: Tensor, top: int, vocab_size: int) -> list[TokenLogprobs]:
    """Log probabilities of the tokens that follow in a prompt.

    Args:
        logits_tv: at each position, one row per entry of ``next_ids_t``.
        next_ids_t: the token that follows there, int64.
        top: how many most likely tokens to name at each position.
        vocab_size: columns from here on are left out.
    """
    token_ids = next_ids_t.tolist()
    return token_logprobs(logits_tv[:, :vocab_size], token_ids, [top] * len(token_ids))
