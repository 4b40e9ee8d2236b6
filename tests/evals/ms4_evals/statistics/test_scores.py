"""Scores and intervals against closed forms, brute force and simulation. Tolerances are rounding of doubles unless said."""

import itertools
import math

import numpy as np
import pytest

from ms4_evals.statistics.scores import bootstrap_means, paired_difference, paired_ratios, score, standard_error, wilson_interval

EXACT = 1e-12


def test_one_sample_per_problem_is_the_binomial_case():
    """30 of 40 right: the mean, the standard error sqrt(p q / (n - 1)), and Wilson's published example form."""
    result = score([[True]] * 30 + [[False]] * 10, 0.95)
    assert result.value == pytest.approx(0.75, abs=EXACT)
    assert result.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 39), abs=EXACT)
    assert result.standard_error_runs is None
    # Effective number of samples: p q / SE^2 = 39.
    assert (result.low, result.high) == pytest.approx(wilson_interval(0.75, 39, 0.95), abs=EXACT)


def test_wilson_solves_its_defining_equation():
    """The ends are where (share - p)^2 = z^2 p (1 - p) / n (Wilson 1927); 1.959963984540054 is the 97.5 % normal quantile."""
    for share, count in [(0.5, 10), (0.0, 30), (1.0, 30), (0.97, 200.5)]:
        for end in wilson_interval(share, count, 0.95):
            if 0 < end < 1:
                assert (share - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / count, rel=1e-9)
        low, high = wilson_interval(share, count, 0.95)
        assert 0 <= low <= share + EXACT
        assert share - EXACT <= high <= 1


@pytest.mark.parametrize("right", [False, True])
def test_the_interval_holds_the_score_whatever_rounding_does(right):
    for problems in range(1, 300):
        found = score([[right]] * problems, 0.95)
        assert found.low <= found.value <= found.high, problems


def test_everything_right_still_has_an_interval():
    result = score([[True] * 4] * 30, 0.95)
    assert (result.value, result.high) == (1.0, 1.0)
    assert result.low == pytest.approx(30 / (30 + 1.959963984540054**2), abs=1e-9)


def test_the_standard_error_is_clustered_by_problem():
    """Copies of a sample carry no news: repeating each one 16 times leaves the error as it is. An unclustered error would shrink by 4."""
    single = [[True], [False], [True], [True], [False]]
    repeated = [samples * 16 for samples in single]
    assert score(repeated, 0.95).standard_error == pytest.approx(score(single, 0.95).standard_error, abs=EXACT)
    flat = score([[sample] for samples in repeated for sample in samples], 0.95)
    assert flat.standard_error < 0.3 * score(repeated, 0.95).standard_error


def test_standard_error_of_runs():
    """Two runs over two problems that score 1 and 0.5: the error of their mean is half their distance."""
    result = score([[True, True], [True, False]], 0.95)
    assert result.standard_error_runs == pytest.approx(0.25, abs=EXACT)


def test_a_single_problem_has_no_standard_error():
    result = score([[True, False]], 0.95)
    assert result.standard_error is None
    assert 0 < result.low < 0.5 < result.high < 1
    assert standard_error(np.array([0.3])) is None


def test_the_bootstrap_equals_all_resamples_of_a_small_case():
    """Four problems have 256 equally likely resamples; the seeded draw must meet their quantiles.

    Tolerance: 200,000 draws put a quantile's level within 0.002 of 2.5 %, where the exact distribution is flat.
    """
    high, none = [1.0, 1.0, 0.5, 0.0], [0.0, 0.5, 0.5, 0.5]
    difference = np.array(high) - np.array(none)
    every = np.array([np.mean(difference[list(pick)]) for pick in itertools.product(range(4), repeat=4)])
    result = paired_difference(high, none, confidence=0.95, resamples=200_000, seed=1)
    assert result.value == pytest.approx(0.25, abs=EXACT)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(every, [0.025, 0.975])), abs=EXACT)
    assert np.std(bootstrap_means(difference, 200_000, 1)) == pytest.approx(np.std(every), rel=0.01)


def test_the_normal_interval_is_the_textbook_one():
    result = paired_difference([1, 1, 0, 1], [0, 1, 0, 0], confidence=0.95, resamples=100, seed=0)
    error = math.sqrt(((1 - 0.5) ** 2 * 2 + 0.5**2 * 2) / 3) / 2
    assert result.standard_error == pytest.approx(error, abs=EXACT)
    assert (result.normal_low, result.normal_high) == pytest.approx((0.5 - 1.959963984540054 * error, 0.5 + 1.959963984540054 * error))


def test_pairing_narrows_the_interval():
    """Two modes that differ by almost the same amount on problems of very different difficulty: the difference is known almost exactly."""
    none = list(np.linspace(0.0, 0.75, 20))
    high = [value + 0.2 + 0.01 * (index % 2) for index, value in enumerate(none)]
    result = paired_difference(high, none, confidence=0.95, resamples=500, seed=0)
    assert (result.low, result.high) == pytest.approx((0.205, 0.205), abs=0.004)
    assert result.method == "bootstrap"
    shuffled = paired_difference(high, none[::-1], confidence=0.95, resamples=500, seed=0)
    assert shuffled.high - shuffled.low > 0.2


@pytest.mark.parametrize(("high", "none"), [(1.0, 0.0), (0.0, 0.0), (1.0, 1.0)])
def test_a_difference_without_spread_still_has_an_interval(high, none):
    """Ten problems that all go the same way do not prove that the next one will: the interval is Newcombe's, from both Wilson intervals."""
    result = paired_difference([high] * 10, [none] * 10, confidence=0.95, resamples=200, seed=0)
    share = 1.959963984540054**2 / (10 + 1.959963984540054**2)  # how far Wilson's interval reaches from 0 of 10, or from 10 of 10
    below = math.hypot(share if high == 1 else 0, share if none == 0 else 0)
    above = math.hypot(share if high == 0 else 0, share if none == 1 else 0)
    assert result.value == high - none
    assert (result.low, result.high) == pytest.approx((high - none - below, high - none + above), abs=1e-9)
    assert (result.method, result.normal_low) == ("wilson", None)


def test_the_bootstrap_is_seeded_and_does_not_depend_on_its_chunks(monkeypatch):
    values = np.random.Generator(np.random.PCG64(3)).random(30)
    whole = bootstrap_means(values, 1000, 7)
    assert np.array_equal(whole, bootstrap_means(values, 1000, 7))
    assert not np.array_equal(whole, bootstrap_means(values, 1000, 8))
    monkeypatch.setattr("ms4_evals.statistics.scores._BOOTSTRAP_CELLS", 100)
    assert np.array_equal(np.sort(whole), np.sort(bootstrap_means(values, 1000, 7)))


def test_intervals_cover_what_they_claim():
    """400 simulated evaluations of 60 problems with 4 samples each and problems of very different difficulty.

    A 95 % interval misses about 20 of 400 (standard deviation 4.4); between 5 and 38 misses are accepted. An unclustered interval misses
    far more often: the negative control.
    """
    generator = np.random.Generator(np.random.PCG64(11))
    misses = unclustered_misses = 0
    for _ in range(400):
        chance_p = generator.beta(0.4, 0.4, size=60)
        right_ps = (generator.random((60, 4)) < chance_p[:, None]).tolist()
        result = score(right_ps, 0.95)
        misses += not result.low <= 0.5 <= result.high
        low, high = wilson_interval(result.value, 240, 0.95)
        unclustered_misses += not low <= 0.5 <= high
    assert 5 <= misses <= 38
    assert unclustered_misses > 50


def test_a_ratio_whose_resamples_may_have_nothing_to_divide_by_has_no_interval():
    """Two problems, one of them of length 0: every fourth resample draws it twice."""
    first, second = np.array([[4.0], [6.0]]), np.array([[0.0], [5.0]])
    (ratio,) = paired_ratios(first, second, confidence=0.95, resamples=100, seed=0)
    assert (ratio.value, ratio.low, ratio.high) == (2.0, None, None)


@pytest.mark.parametrize(("right", "samples"), [(1, 3), (1, 10), (7, 10)])
def test_equal_shares_that_no_double_holds_do_not_make_an_interval_of_no_width(right, samples):
    """The mean of equal doubles may differ from them in the last bit, so their standard deviation is 1e-17 and not 0."""
    for problems in range(2, 40):
        result = score([[True] * right + [False] * (samples - right)] * problems, 0.95)
        assert result.standard_error == 0
        assert (result.low, result.high) == wilson_interval(result.value, problems, 0.95)
        shares = [right / samples] * problems
        difference = paired_difference(shares, [0.0] * problems, confidence=0.95, resamples=50, seed=0)
        assert difference.method == "wilson"
        assert difference.high - difference.low > 0.1
    assert any(np.std([0.1] * problems, ddof=1) > 0 for problems in range(2, 40)), "control: it happens"
