"""pass@k and cons@k against counting every subset."""

import itertools

import pytest

from ms4_evals.statistics.repeats import consensus_at_k, pass_at_k, powers_of_two


@pytest.mark.parametrize("right", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(right, k):
    samples = [True] * right + [False] * (6 - right)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k([samples], k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_averages_over_problems_and_does_not_care_about_order():
    assert pass_at_k([[True, False], [False, False]], 1) == 0.25
    assert pass_at_k([[False, True], [False, False]], 2) == 0.5


def test_consensus_takes_the_most_frequent_answer():
    votes = [("70", True), ("71", False), ("70", True), ("72", False)]
    assert consensus_at_k([votes], 4) == 1.0
    assert consensus_at_k([[("71", False), ("71", False), ("70", True)]], 3) == 0.0


def test_ties_count_by_share_and_silence_does_not_vote():
    assert consensus_at_k([[("70", True), ("71", False)]], 2) == 0.5
    assert consensus_at_k([[(None, False), (None, False), ("70", True)]], 3) == 1.0
    assert consensus_at_k([[(None, False)] * 3], 3) == 0.0


def test_consensus_over_disjoint_groups():
    votes = [("70", True), ("70", True), ("71", False), ("71", False), ("70", True)]
    assert consensus_at_k([votes], 2) == 0.5
    assert consensus_at_k([votes], 1) == 0.6


def test_powers_of_two():
    assert [powers_of_two(limit) for limit in (1, 2, 3, 16)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 16]]
