"""Paired comparisons against numpy, and what is refused."""

import numpy as np
import pytest
from scipy.stats import binomtest
from support.made_stores import graded, made_evaluation

from ms4_evals.statistics.pairs import compare_modes, compare_pairs
from ms4_evals.statistics.summary import summarise

NONE, HIGH = (made_evaluation(mode=mode, problems=2, samples=2) for mode in ("none", "high"))
SETTINGS = {"confidence": 0.95, "resamples": 200, "seed": 0}


def summary_of(evaluation, right_ps, **values):
    samples = [
        graded(evaluation, problem, index, "correct" if right else "wrong", **values)
        for problem, samples in enumerate(right_ps)
        for index, right in enumerate(samples)
    ]
    return summarise(evaluation, samples, confidence=0.95)


def test_the_modes_are_compared_problem_by_problem_and_only_when_complete():
    complete = summary_of(NONE, [[1, 0], [0, 0]])
    difference = compare_modes(summary_of(HIGH, [[1, 1], [1, 1]]), complete, **SETTINGS)
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == (0.75, 0.5, 1.0)
    part = summary_of(HIGH, [[1]])
    assert compare_modes(part, complete, **SETTINGS) is None
    assert compare_modes(summary_of(HIGH, [[1, 1], [1, 1]]), summary_of(NONE, [[1]]), **SETTINGS) is None, "either side counts"
    allowed = compare_pairs(part, complete, allow_errors=True, **SETTINGS)
    assert allowed is not None
    assert (allowed.problems, allowed.difference.value) == (1, 0.5)
    assert compare_pairs(summary_of(HIGH, []), complete, allow_errors=True, **SETTINGS) is None


def test_different_boards_cannot_be_compared():
    other = made_evaluation(mode="none", problems=3, samples=2)
    with pytest.raises(AssertionError):
        compare_modes(summary_of(HIGH, []), summary_of(other, []), **SETTINGS)


def test_mcnemar_is_of_the_first_samples_and_the_sign_flips_of_all():
    """Ten problems: the first sample is won by high in six and lost in one; the second samples are all alike."""
    none, high = (made_evaluation(mode=mode, problems=10, samples=2) for mode in ("none", "high"))
    first = summary_of(high, [[1, 1]] * 6 + [[0, 0]] + [[1, 0]] * 3)
    second = summary_of(none, [[0, 1]] * 6 + [[1, 0]] + [[1, 0]] * 3)
    pairing = compare_pairs(first, second, **SETTINGS)
    assert pairing is not None
    assert pairing.mcnemar is not None
    assert (pairing.mcnemar.first_only, pairing.mcnemar.second_only, pairing.mcnemar.both) == (6, 1, 3)
    assert pairing.mcnemar.p_value == pytest.approx(binomtest(6, 7).pvalue)
    assert pairing.sign_flip_p == pytest.approx(binomtest(6, 7).pvalue)  # each difference is half of one sign


def test_ratios_of_lengths_against_a_bootstrap_by_hand():
    """Same seed, same drawn problems: the quantiles agree to rounding."""
    none, high = (made_evaluation(mode=mode, problems=7, samples=1) for mode in ("none", "high"))
    lengths = np.random.default_rng(3).integers(1, 900, size=(7, 2))
    summaries = [
        summarise(
            evaluation,
            [graded(evaluation, p, 0, "wrong", thinking_chars=0, thinking_tokens=0, answer_chars=int(lengths[p, side])) for p in range(7)],
            confidence=0.9,
        )
        for side, evaluation in enumerate((high, none))
    ]
    pairing = compare_pairs(*summaries, confidence=0.9, resamples=500, seed=4)
    assert pairing is not None
    picks = np.random.Generator(np.random.PCG64(4)).integers(0, 7, size=(500, 7))
    ratios = lengths[picks, 0].sum(axis=1) / lengths[picks, 1].sum(axis=1)
    ratio = pairing.length_ratios["answer_chars"]
    assert ratio.value == pytest.approx(lengths[:, 0].sum() / lengths[:, 1].sum())
    assert (ratio.low, ratio.high) == pytest.approx(tuple(np.quantile(ratios, [0.05, 0.95])), rel=1e-12)
    assert pairing.length_ratios["answer_tokens"].value == 1.0
    assert "thinking_chars" not in pairing.length_ratios, "nothing divided by nothing"
    assert "usage_tokens" not in pairing.length_ratios, "no side knows it"


def test_a_single_problem_has_a_ratio_without_interval():
    none, high = (made_evaluation(mode=mode, problems=1, samples=1) for mode in ("none", "high"))
    pairing = compare_pairs(summary_of(high, [[1]], answer_chars=9), summary_of(none, [[1]], answer_chars=3), **SETTINGS)
    assert pairing is not None
    ratio = pairing.length_ratios["answer_chars"]
    assert (ratio.value, ratio.low, ratio.high) == (3.0, None, None)
