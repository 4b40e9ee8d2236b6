"""Drawing one token per row from logits: temperature, min-p, top-k and top-p, by numbers that (seed, position) determine.

The numbers come from a counter-based generator (the SplitMix64 finalizer of Steele, Lea and Flood, 2014). No state is kept, so an answer
does not depend on its row in the batch or on the company it is computed in. For the same reason probabilities become integers before they
are added up: a sum of integers is the same in any order, and machines choose the order by the number of rows.

Filters act in vLLM's order: temperature, then min-p, top-k, top-p, each on what the ones before it have left; top-p's share is one of what
is left. A filter that must choose among equally likely tokens keeps those with the lower ids.
Exercise it: ``pytest tests/ms4_train/inference/test_drawing.py``.

Shape suffixes: n rows of one kind, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ms4_train.inference.sampling_params import SamplingParams

_BITS = (1 << 64) - 1
_INCREMENT = 0x9E3779B97F4A7C15
_SEED_STEP = 0xD1342543DE82EF95
"""Odd, and unrelated to ``_INCREMENT``: seeds of samples must not be shifted copies of each other's positions."""
_VALUES_ON_CPU = 1 << 16
"""fp64 values per pass, which should stay in the cache."""
_VALUES_ON_DEVICE = 1 << 24
"""Likewise, to bound its memory."""


def mix64(bits: int) -> int:
    """SplitMix64's finalizer: a bijection of 64-bit patterns that passes statistical test suites as a generator of counters."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _BITS
    return bits ^ (bits >> 31)


def stream_start(seed: int) -> int:
    """Where the numbers of a seed begin; the half of :func:`uniform` that does not change from token to token."""
    return mix64((seed + _INCREMENT) & _BITS)


def uniform(start: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, of a stream (``stream_start``) and a position of 0 or more."""
    return (mix64((start + (position + 1) * _INCREMENT) & _BITS) >> 11) * 2.0**-53


def sample_seed(seed: int, index: int) -> int:
    """Seed of answer ``index`` to one request, from 0 to 2^63 - 1; that of answer 0 is the request's."""
    return seed if index == 0 else mix64((stream_start(seed) + index * _SEED_STEP) & _BITS) >> 1


def weight_bits(vocab_size: int) -> int:
    """Bits of the most likely token's weight: the sum of ``vocab_size`` weights stays below 2^62."""
    return 62 - (vocab_size - 1).bit_length()


def weights(logits_nv: Tensor, temperature_n1: Tensor | None = None) -> Tensor:
    """Integers in proportion to each row's probabilities, int64 [n, v].

    The most likely token has 2^``weight_bits``; one that is less likely by more than this factor (2^45 for 131,072 tokens) has 0.

    Args:
        logits_nv: any floating type.
        temperature_n1: float64, above 0; None is 1.
    """
    # The highest logit becomes 0 first, or a very low temperature would overflow.
    scaled_nv = logits_nv.to(torch.float64) - logits_nv.amax(dim=-1, keepdim=True).to(torch.float64)
    if temperature_n1 is not None:
        scaled_nv.div_(temperature_n1)
    return scaled_nv.exp_().mul_(2.0 ** weight_bits(logits_nv.shape[1])).round_().to(torch.int64)


def kept(weight_nv: Tensor, top_k_n: Tensor, top_p_n: Tensor, min_p_n: Tensor) -> Tensor:
    """Weights with everything that the filters leave out set to 0; at least the most likely token of each row stays.

    Args:
        weight_nv: int64, in proportion to the probabilities.
        top_k_n: int64, most tokens to keep; 0 is no limit.
        top_p_n: float64, above 0; the smallest set of most likely tokens is kept that has this share of what min-p and top-k left, which
            means: a token stays if those before it do not reach the share yet. 1 is no limit.
        min_p_n: float64, tokens less likely than this share of the most likely one's probability go.

    Returns:
        int64 [n, v].
    """
    size = weight_nv.shape[1]
    rising_nv = _sorted(weight_nv)
    sum_nv = rising_nv.cumsum(dim=-1)
    total_n1 = sum_nv[:, -1:]
    # How many of the least likely tokens go: at first those below min-p and beyond top-k ...
    gone_n1 = torch.searchsorted(rising_nv, (min_p_n[:, None] * rising_nv[:, -1:]).ceil().to(torch.int64))
    gone_n1 = torch.maximum(gone_n1, (size - top_k_n).masked_fill(top_k_n == 0, 0)[:, None]).clamp_max(size - 1)
    left_n1 = total_n1 - sum_nv.gather(1, (gone_n1 - 1).clamp_min(0)).masked_fill(gone_n1 == 0, 0)
    # ... then as many as can go while the others still have the share of top-p.
    share_n1 = torch.minimum((top_p_n[:, None] * left_n1).ceil().to(torch.int64), left_n1)
    share_n1 = torch.where(top_p_n[:, None] == 1, left_n1, share_n1)
    gone_n1 = torch.maximum(gone_n1, torch.searchsorted(sum_nv, total_n1 - share_n1, right=True)).clamp_max(size - 1)
    least_n1 = rising_nv.gather(1, gone_n1)
    kept_nv = weight_nv * (weight_nv >= least_n1)  # twice as fast as masked_fill
    if bool((torch.searchsorted(rising_nv, least_n1) < gone_n1).any()):
        # Some of the equally likely tokens at the boundary go.
        spare_n1 = torch.searchsorted(rising_nv, least_n1, right=True) - gone_n1
        is_least_nv = weight_nv == least_n1
        kept_nv.masked_fill_(is_least_nv & (is_least_nv.cumsum(dim=-1) > spare_n1), 0)
    return kept_nv


def _sorted(value_nv: Tensor) -> Tensor:
    """Each row's values, rising. Values without indices sort many times faster, above all in NumPy."""
    if value_nv.device.type == "cpu":
        return torch.from_numpy(np.sort(value_nv.numpy(), axis=-1))
    return torch.sort(value_nv, dim=-1).values


def drawn(weight_nv: Tensor, uniform_n: Tensor) -> Tensor:
    """Token drawn from each row in proportion to int64 weights, by inverting their cumulative sum; never one of weight 0."""
    sum_nv = weight_nv.cumsum(dim=-1)
    total_n1 = sum_nv[:, -1:]
    # u < 1, but u * total may round up to total.
    target_n1 = torch.minimum((uniform_n[:, None] * total_n1).to(torch.int64), total_n1 - 1)
    index_n = torch.searchsorted(sum_nv, target_n1, right=True)[:, 0]
    return index_n.clamp_max(weight_nv.shape[1] - 1)  # only rows of NaN need it; the caller reports them


def is_filtered(params: SamplingParams) -> bool:
    """Whether min-p, top-k or top-p leave out tokens."""
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


class Draws:
    """Rows of one kind, laid out for drawing; made anew when rows come or go.

    Rows with a filter and rows without must not share a ``Draws``: whether a neighbour uses top-p must not change how this row's number is
    turned into a token.

    Args:
        params: one per row, temperatures above 0.
        seeds: one per row.
        device: of the logits.
    """

    def __init__(self, params: Sequence[SamplingParams], seeds: Sequence[int], device: torch.device) -> None:
        def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self._starts = [stream_start(seed) for seed in seeds]
        self._temperature_n1 = column([param.temperature for param in params], torch.float64)[:, None]
        self._filters: tuple[Tensor, Tensor, Tensor] | None = None
        if is_filtered(params[0]):
            self._filters = (
                column([param.top_k for param in params], torch.int64),
                column([param.top_p for param in params], torch.float64),
                column([param.min_p for param in params], torch.float64),
            )

    def draw(self, logits_nv: Tensor, positions: Sequence[int]) -> Tensor:
        """One token per row, int64 [n]; anything where a row's logits hold NaN or +infinity.

        Args:
            logits_nv: any floating type; -infinity is never drawn.
            positions: which token of its answer each row draws, from 0.
        """
        numbers = [uniform(start, position) for start, position in zip(self._starts, positions, strict=True)]
        uniform_n = torch.tensor(numbers, dtype=torch.float64, device=logits_nv.device)
        at_once = max(1, (_VALUES_ON_CPU if logits_nv.device.type == "cpu" else _VALUES_ON_DEVICE) // logits_nv.shape[1])
        if len(logits_nv) <= at_once:
            return self._draw_some(logits_nv, uniform_n, slice(None))
        parts = [slice(start, start + at_once) for start in range(0, len(logits_nv), at_once)]
        return torch.cat([self._draw_some(logits_nv[rows], uniform_n[rows], rows) for rows in parts])

    def _draw_some(self, logits_nv: Tensor, uniform_n: Tensor, rows: slice) -> Tensor:
        weight_nv = weights(logits_nv, self._temperature_n1[rows])
        if self._filters is not None:
            top_k_n, top_p_n, min_p_n = self._filters
            weight_nv = kept(weight_nv, top_k_n[rows], top_p_n[rows], min_p_n[rows])
        return drawn(weight_nv, uniform_n)
