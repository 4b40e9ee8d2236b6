"""How far two sets of logits are apart, summed up while they come in chunks of the vocabulary.

Exercise it: ``pytest tests/ms4_train/weights/compare/test_logit_statistics.py``.

Shape suffixes: t tokens, v some ids of the vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class LogitStatistics:
    """Largest error, Kullback-Leibler divergence and agreement of the first choice, all relative to the first set.

    With p and q the two distributions, KL(p || q) = E_p[a - b] - log Z_a + log Z_b for logits a and b. Sums are in fp64, with exponents
    taken relative to the largest logit so far, so that nothing overflows.
    """

    def __init__(self, num_tokens: int) -> None:
        def full(value: float) -> Tensor:
            return torch.full((num_tokens,), value, dtype=torch.float64)

        self._max_a_t, self._max_b_t = full(-math.inf), full(-math.inf)
        self._sum_a_t, self._sum_b_t, self._difference_t = full(0.0), full(0.0), full(0.0)
        self._best_a_t, self._best_b_t = (torch.zeros(num_tokens, dtype=torch.int64) for _ in range(2))
        self._largest_error = self._largest = 0.0
        self.is_finite = True
        """Whether every logit was a finite number."""

    def add(self, start: int, a_tv: Tensor, b_tv: Tensor) -> None:
        """Take the logits of ids [start, start + v) of both sets."""
        self.is_finite = self.is_finite and bool(a_tv.isfinite().all()) and bool(b_tv.isfinite().all())
        if not self.is_finite:
            return
        a_tv, b_tv = a_tv.double(), b_tv.double()
        self._largest_error = max(self._largest_error, float((b_tv - a_tv).abs().max()))
        self._largest = max(self._largest, float(a_tv.abs().max()))
        shrink_t, power_tv = self._advance(self._max_a_t, self._best_a_t, start, a_tv)
        self._sum_a_t = self._sum_a_t * shrink_t + power_tv.sum(dim=1)
        self._difference_t = self._difference_t * shrink_t + (power_tv * (a_tv - b_tv)).sum(dim=1)
        shrink_t, power_tv = self._advance(self._max_b_t, self._best_b_t, start, b_tv)
        self._sum_b_t = self._sum_b_t * shrink_t + power_tv.sum(dim=1)

    @staticmethod
    def _advance(max_t: Tensor, best_t: Tensor, start: int, logits_tv: Tensor) -> tuple[Tensor, Tensor]:
        """Move the maximum on; return what older sums are multiplied by, and the new exponentials."""
        top_t, at_t = logits_tv.max(dim=1)
        is_new_t = top_t > max_t  # of equal logits the first id counts
        best_t[is_new_t] = start + at_t[is_new_t]
        new_t = torch.maximum(max_t, top_t)
        shrink_t = (max_t - new_t).exp()
        max_t.copy_(new_t)
        return shrink_t, (logits_tv - new_t[:, None]).exp()

    @property
    def max_relative_error(self) -> float:
        """Largest difference of a logit, as a share of the largest logit of the first set."""
        if not self.is_finite:
            return math.inf
        return self._largest_error / self._largest if self._largest else (math.inf if self._largest_error else 0.0)

    @property
    def kl_t(self) -> Tensor:
        """KL(first || second) of each token, nats; NaN where logits were not finite."""
        if not self.is_finite:
            return torch.full_like(self._sum_a_t, math.nan)
        log_z_a_t, log_z_b_t = self._max_a_t + self._sum_a_t.log(), self._max_b_t + self._sum_b_t.log()
        return (self._difference_t / self._sum_a_t - log_z_a_t + log_z_b_t).clamp(min=0.0)

    @property
    def same_first_choice(self) -> float:
        """Share of the tokens after which both have the same most likely token."""
        return float((self._best_a_t == self._best_b_t).double().mean()) if self.is_finite else 0.0
