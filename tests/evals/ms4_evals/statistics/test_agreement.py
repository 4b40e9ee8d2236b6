"""The second grader's score and its agreement with the first, against scikit-learn and by hand."""

import random

import pytest
from sklearn.metrics import cohen_kappa_score
from support.made_stores import graded, made_evaluation

from ms4_evals.statistics.agreement import cohens_kappa, disagrees, second_score
from ms4_evals.statistics.scores import score

EVALUATION = made_evaluation(problems=3, samples=2)


def test_kappa_against_scikit_learn():
    generator = random.Random(1)
    pairs = [(first := generator.random() < 0.6, first if generator.random() < 0.8 else not first) for _ in range(200)]
    expected = cohen_kappa_score([a for a, _ in pairs], [b for _, b in pairs])
    assert cohens_kappa(pairs) == pytest.approx(expected, abs=1e-12)


def test_kappa_needs_both_words():
    assert cohens_kappa([(True, True)] * 5) is None
    assert cohens_kappa([(True, True), (False, False)]) == 1.0
    assert cohens_kappa([(True, False), (False, True)]) == -1.0


def test_the_first_score_is_of_the_same_samples():
    """Problem 0 has no opinions and is all right: it must not make the first grader look better than the second."""
    groups = [
        [graded(EVALUATION, 0, 0, "correct"), graded(EVALUATION, 0, 1, "correct")],
        [graded(EVALUATION, 1, 0, "wrong", opinion="correct"), graded(EVALUATION, 1, 1, "wrong", opinion="failed")],
        [graded(EVALUATION, 2, 0, "correct", opinion="correct"), graded(EVALUATION, 2, 1, "no-answer", opinion="wrong")],
    ]
    second = second_score("other", groups, 0.95)
    assert second is not None
    assert (second.name, second.samples, second.second_only, second.first_only) == ("other", 3, 1, 0)
    assert second.score == score([[True], [True, False]], 0.95)
    assert second.first_score == score([[False], [True, False]], 0.95)
    assert second_score("other", groups[:1], 0.95) is None


def test_disagreement_needs_an_opinion():
    opinions = (None, "failed", "wrong", "correct")
    assert [disagrees(graded(EVALUATION, 0, 0, "wrong", opinion=opinion)) for opinion in opinions] == [False, False, False, True]
    assert disagrees(graded(EVALUATION, 0, 0, "correct", opinion="wrong"))
    rights = [disagrees(graded(EVALUATION, 0, 0, "correct", opinion=opinion)) for opinion in opinions]
    assert rights == [False, False, True, False], "no opinion on a right answer is no disagreement"
