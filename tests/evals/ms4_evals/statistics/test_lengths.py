"""Length summaries against numpy and by hand."""

import math

import numpy as np
import pytest

from ms4_evals.statistics.lengths import summarise_lengths


def test_against_numpy():
    lengths = np.random.Generator(np.random.PCG64(2)).integers(0, 5000, size=(12, 5))
    summary = summarise_lengths(lengths.tolist())
    assert summary is not None
    assert summary.mean == pytest.approx(lengths.mean(), rel=1e-12)
    assert summary.median == np.median(lengths)
    assert summary.p90 == np.quantile(lengths, 0.9, method="inverted_cdf")
    assert summary.maximum == lengths.max()
    error = lengths.mean(axis=1).std(ddof=1) / math.sqrt(12)
    assert summary.mean_high - summary.mean == pytest.approx(1.959963984540054 * error, rel=1e-9)
    assert summary.mean - summary.mean_low == pytest.approx(1.959963984540054 * error, rel=1e-9)


def test_the_percentile_is_a_length_that_occurs():
    summary = summarise_lengths([[1], [2], [1000]])
    assert summary is not None
    assert summary.p90 == 1000
    ten = summarise_lengths([[length] for length in range(1, 11)])
    assert ten is not None
    assert ten.p90 == 9


def test_one_problem_and_none():
    single = summarise_lengths([[3, 5], []])
    assert single is not None
    assert (single.mean, single.mean_low, single.mean_high) == (4, 4, 4)
    assert summarise_lengths([]) is None
    assert summarise_lengths([[], []]) is None


def test_a_mean_length_is_never_below_nothing():
    summary = summarise_lengths([[0], [0], [100]])
    assert summary is not None
    assert summary.mean_low == 0
