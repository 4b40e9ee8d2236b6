"""Exact tests against scipy and against trying every assignment of signs."""

import itertools
import random
from fractions import Fraction

import pytest
from scipy.stats import binomtest, permutation_test

from ms4_evals.statistics import paired_tests
from ms4_evals.statistics.paired_tests import binomial_p, mcnemar, sign_flip_p


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 5), (3, 3), (3, 10), (10, 3), (1, 30), (200, 260), (0, 1055)])
def test_the_binomial_form_against_scipy(first, second):
    """scipy.stats.binomtest is exact too; the two differ by the rounding of its float sum (relative 1e-9 is generous)."""
    expected = binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert binomial_p(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_the_table_is_counted_and_tested():
    first = [True] * 3 + [True] * 12 + [False] * 5 + [False] * 2
    second = [True] * 3 + [False] * 12 + [True] * 5 + [False] * 2
    table = mcnemar(first, second)
    assert (table.both, table.first_only, table.second_only, table.neither) == (3, 12, 5, 2)
    assert round(table.p_value, 4) == 0.1435  # the calculator at stat-tools.xyz/mcnemar prints this for b = 12, c = 5


def test_pairs_that_never_differ_prove_nothing():
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    assert sign_flip_p([Fraction(0)] * 5) == 1.0
    assert sign_flip_p([]) == 1.0


def every_sign(differences):
    observed = abs(sum(differences))
    signs = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(sign * value for sign, value in zip(flips, differences, strict=True))) for flips in signs]
    return sum(total >= observed for total in sums) / len(sums)


@pytest.mark.parametrize("seed", range(12))
def test_sign_flips_against_every_assignment_of_signs(seed):
    generator = random.Random(seed)
    samples = generator.choice([1, 2, 3, 4])
    differences = [Fraction(generator.randint(-samples, samples), samples) for _ in range(10)]
    assert sign_flip_p(differences) == pytest.approx(every_sign(differences), abs=1e-12)


def test_sign_flips_against_scipy():
    """scipy's exact paired permutation test of the mean; it compares floats with a small slack, exact here because quarters are exact."""
    differences = [0.25, 0.5, -0.25, 1.0, 0.75, 0.0, 0.5, 0.25, -0.5, 0.75]
    result = permutation_test(
        (differences,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", n_resamples=float("inf"), vectorized=True
    )
    assert sign_flip_p([Fraction(value) for value in differences]) == pytest.approx(result.pvalue, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0, 7), (5, 2), (30, 12), (400, 300)])
def test_with_one_sample_per_problem_it_is_mcnemar(first, second):
    """Relative 1e-9: sums of up to 700 halvings in doubles."""
    differences = [Fraction(1)] * first + [Fraction(-1)] * second + [Fraction(0)] * 20
    assert sign_flip_p(differences) == pytest.approx(binomial_p(first, second), rel=1e-9)


def test_it_keeps_its_level_where_pairs_of_samples_do_not():
    """Two equal models, 30 problems that each go one way or the other with all four samples: 5 % of tests may call a difference.

    400 simulations: 20 expected, standard deviation 4.4, so at most 38 are accepted. McNemar on all 120 pairs of samples, which are not
    independent, calls far more: the negative control.
    """
    generator = random.Random(5)
    called = naive = 0
    for _ in range(400):
        signs = [generator.choice((-1, 1)) for _ in range(30)]
        called += sign_flip_p([Fraction(sign) for sign in signs]) < 0.05
        naive += binomial_p(4 * signs.count(1), 4 * signs.count(-1)) < 0.05
    assert called <= 38
    assert naive > 100


def test_too_many_denominators_are_given_up(monkeypatch):
    monkeypatch.setattr(paired_tests, "_MAX_CELLS", 1000)
    assert sign_flip_p([Fraction(1, n) for n in (2, 3, 5, 7, 11, 13)]) is None
