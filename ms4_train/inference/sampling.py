"""From logits to one token per row: greedy, temperature and nucleus (top-p) sampling for a whole batch at once.

Random numbers are a function of (seed, position), computed by a counter-based generator (the SplitMix64 finalizer of Steele, Lea and
Flood, 2014) in wrapping 64-bit integer arithmetic on the logits' device. No state is kept, so an answer does not depend on its row in the
batch or on the company it is computed in.

Shape suffixes: b = rows of the batch, v = vocabulary, n = rows of one kind.
Exercise it: ``pytest tests/ms4_train/inference/test_sampling.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ms4_train.inference.request import SamplingParams

NOT_FINITE = -1


def _signed(value: int) -> int:
    """The 64-bit pattern ``value`` as torch's signed int64 wants it."""
    return value - (1 << 64) if value >= 1 << 63 else value


_INCREMENT = _signed(0x9E3779B97F4A7C15)
_FIRST_FACTOR = _signed(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = _signed(0x94D049BB133111EB)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift of int64 bit patterns; torch's own ``>>`` copies the sign bit."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def mix64(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer: a bijection of 64-bit patterns (int64) that passes statistical test suites as a generator of counters."""
    bits = (bits ^ _shift_right(bits, 30)) * _FIRST_FACTOR
    bits = (bits ^ _shift_right(bits, 27)) * _SECOND_FACTOR
    return bits ^ _shift_right(bits, 31)


def uniform(seed_b: Tensor, position_b: Tensor) -> Tensor:
    """One uniform number in [0, 1) per row, float64 with 53 random bits, from int64 seeds and int64 positions of 0 or more."""
    start_b = mix64(seed_b + _INCREMENT)
    bits_b = mix64(start_b + (position_b + 1) * _INCREMENT)
    return _shift_right(bits_b, 11).to(torch.float64) * 2.0**-53


def nucleus(probability_nv: Tensor, top_p_n: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's tokens by falling probability, with everything outside the nucleus set to zero.

    The nucleus is the smallest set of most likely tokens whose cumulative probability is at least ``top_p``: a token belongs to it if the
    tokens before it do not reach ``top_p`` yet. Equal probabilities stand in order of their ids. The result is not renormalised.

    Returns:
        kept probabilities [n, v] and token ids [n, v], both in falling order of probability.
    """
    sorted_nv, token_nv = torch.sort(probability_nv, dim=-1, descending=True, stable=True)
    before_nv = torch.nn.functional.pad(sorted_nv.cumsum(dim=-1)[:, :-1], (1, 0))
    return sorted_nv.masked_fill(before_nv >= top_p_n[:, None], 0.0), token_nv


def _draw(probability_nv: Tensor, uniform_n: Tensor) -> Tensor:
    """Index drawn from each row by inverting its cumulative distribution; rows need not sum to one. Never an entry of probability 0."""
    cumulative_nv = probability_nv.cumsum(dim=-1)
    # u < 1, but u * total may round up to total; the largest number below total still falls into the last entry that has mass.
    total_n1 = cumulative_nv[:, -1:]
    target_n1 = torch.minimum(uniform_n[:, None] * total_n1, torch.nextafter(total_n1, torch.zeros_like(total_n1)))
    index_n = torch.searchsorted(cumulative_nv, target_n1, right=True)[:, 0]
    return index_n.clamp_max(probability_nv.shape[1] - 1)  # only rows of NaN need it; the caller reports them


class BatchSampler:
    """The sampling parameters of a batch's rows, laid out for vectorised use; made anew when rows come or go.

    Args:
        params: one per row.
        device: of the logits.
        vocab_size: ids from here on are never chosen (rows of the head that the tokenizer has no token for).
    """

    def __init__(self, params: Sequence[SamplingParams], device: torch.device, vocab_size: int) -> None:
        def column(values: list, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self._vocab_size = vocab_size
        # Rows are split by kind: whether a neighbour uses top-p must not change how this row's number is turned into a token.
        plain = [row for row, param in enumerate(params) if param.temperature > 0 and param.top_p == 1]
        nucleus_rows = [row for row, param in enumerate(params) if param.temperature > 0 and param.top_p < 1]
        self._kinds: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
        for rows, is_nucleus in ((plain, False), (nucleus_rows, True)):
            if rows:
                top_p_n = column([params[row].top_p for row in rows], torch.float64) if is_nucleus else None
                temperature_n = column([params[row].temperature for row in rows], torch.float64)
                self._kinds.append(
                    (column(rows, torch.int64), temperature_n, column([params[row].seed for row in rows], torch.int64), top_p_n)
                )

    def sample(self, logits_bv: Tensor, position_b: Sequence[int]) -> Tensor:
        """One token id per row (int64 [b]); ``NOT_FINITE`` where a row's logits hold NaN or +infinity.

        Args:
            logits_bv: any floating type.
            position_b: which token of its answer each row chooses, from 0.
        """
        logits_bv = logits_bv[:, : self._vocab_size]
        highest_b, token_b = logits_bv.max(dim=-1)  # on a tie torch's max takes the first index; it carries NaN through
        finite_b = highest_b.isfinite()
        if self._kinds:
            position_tensor_b = torch.tensor(position_b, dtype=torch.int64, device=logits_bv.device)
            for row_n, temperature_n, seed_n, top_p_n in self._kinds:
                scaled_nv = logits_bv[row_n].to(torch.float64)
                scaled_nv = (scaled_nv - highest_b[row_n, None].to(torch.float64)) / temperature_n[:, None]
                probability_nv = torch.softmax(scaled_nv, dim=-1)
                uniform_n = uniform(seed_n, position_tensor_b[row_n])
                if top_p_n is None:
                    drawn_n = _draw(probability_nv, uniform_n)
                else:
                    kept_nv, sorted_token_nv = nucleus(probability_nv, top_p_n)
                    drawn_n = sorted_token_nv.gather(1, _draw(kept_nv, uniform_n)[:, None])[:, 0]
                token_b[row_n] = drawn_n
        return token_b.masked_fill(~finite_b, NOT_FINITE)
