"""Two sets of answers to the same problems, paired by problem: modes of one run, or two runs.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_pairs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ms4_evals.statistics.paired_tests import McNemar, mcnemar, sign_flip_p
from ms4_evals.statistics.scores import Difference, Ratio, paired_difference, paired_ratios

if TYPE_CHECKING:
    from ms4_evals.statistics.summary import ProblemResult, Summary

COMPARED_LENGTHS = ("thinking_chars", "answer_chars", "total_chars", "thinking_tokens", "answer_tokens", "total_tokens", "usage_tokens")
"""Of ``LENGTHS``, those that a model decides about."""


@dataclass(frozen=True)
class Pairing:
    """First - second over the problems that both have graded samples of.

    Attributes:
        problems: how many those are.
        difference: of the scores.
        mcnemar: on the first sample (index 0) of each problem in both: independent pairs, whatever the number of samples. None where no
            problem has both.
        sign_flip_p: the exact test that uses all samples, with the problem as its unit; equal to McNemar's for one sample per problem.
        length_ratios: mean length of first over second, by quantity, where both know it for every problem.
    """

    problems: int
    difference: Difference
    mcnemar: McNemar | None
    sign_flip_p: float | None
    length_ratios: dict[str, Ratio]


def compare_pairs(
    first: Summary, second: Summary, *, confidence: float, resamples: int, seed: int, allow_errors: bool = False
) -> Pairing | None:
    """first - second; None while either is incomplete (unless ``allow_errors``), or where they share no problem.

    Args:
        first, second: of the same board.
        confidence: of every interval.
        resamples, seed: of the bootstrap.
        allow_errors: take the samples that there are.

    Raises:
        AssertionError: the two are of different boards, which nobody may compare.
    """
    assert first.evaluation.board_id == second.evaluation.board_id
    if not (allow_errors or (first.is_complete and second.is_complete)):
        return None
    names = [name for name in first.problems if name in second.problems]
    if not names:
        return None
    pairs = [(first.problems[name], second.problems[name]) for name in names]
    firsts = [(a.first_is_correct, b.first_is_correct) for a, b in pairs]
    both = [(a, b) for a, b in firsts if a is not None and b is not None]
    return Pairing(
        problems=len(names),
        difference=paired_difference(
            [a.correct / a.samples for a, _ in pairs],
            [b.correct / b.samples for _, b in pairs],
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        ),
        mcnemar=mcnemar([a for a, _ in both], [b for _, b in both]) if both else None,
        sign_flip_p=sign_flip_p([a.share - b.share for a, b in pairs]),
        length_ratios=_length_ratios(pairs, confidence=confidence, resamples=resamples, seed=seed),
    )


def compare_modes(
    high: Summary, none: Summary, *, confidence: float, resamples: int, seed: int, allow_errors: bool = False
) -> Difference | None:
    """high - none over the problems of one board, as ``compare_pairs``."""
    pairing = compare_pairs(high, none, confidence=confidence, resamples=resamples, seed=seed, allow_errors=allow_errors)
    return None if pairing is None else pairing.difference


def _length_ratios(
    pairs: Sequence[tuple[ProblemResult, ProblemResult]], *, confidence: float, resamples: int, seed: int
) -> dict[str, Ratio]:
    """By quantity that both sides know for every problem. A mode that never thinks has no length of thinking to be a multiple of."""
    known: dict[str, list[tuple[float, float]]] = {}
    for name in COMPARED_LENGTHS:
        lengths = [(a.lengths[name], b.lengths[name]) for a, b in pairs if name in a.lengths and name in b.lengths]
        if len(lengths) == len(pairs) and all(sum(side) > 0 for side in zip(*lengths, strict=True)):
            known[name] = lengths
    if not known:
        return {}
    values_qps = np.array(list(known.values()))
    ratios = paired_ratios(values_qps[:, :, 0].T, values_qps[:, :, 1].T, confidence=confidence, resamples=resamples, seed=seed)
    return dict(zip(known, ratios, strict=True))
