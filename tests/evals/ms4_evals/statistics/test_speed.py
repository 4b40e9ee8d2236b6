"""Cost and speed, by hand and against numpy."""

import numpy as np
import pytest
from support.made_stores import failed_sample, graded, made_evaluation

from ms4_evals.statistics.speed import Cost, cost_of, speed_values

EVALUATION = made_evaluation(problems=3, samples=2)


def test_cost_per_sample_and_per_correct_answer():
    samples = [
        graded(EVALUATION, 0, 0, "correct", cost=0.5),
        graded(EVALUATION, 0, 1, "wrong", cost=0.25),
        graded(EVALUATION, 1, 0, "correct"),
        graded(EVALUATION, 1, 1, "truncated", cost=0.75),
    ]
    assert cost_of(samples) == Cost(total=1.5, samples=3, per_sample=0.5, per_correct=1.5)
    assert cost_of(samples[1:2]) == Cost(0.25, 1, 0.25, None)
    assert cost_of(samples[2:3]) is None


def test_speed_of_answers():
    samples = [
        graded(EVALUATION, 0, 0, "correct", seconds=1.0, usage_tokens=101, first_token_seconds=0.5),
        graded(EVALUATION, 0, 1, "wrong", seconds=4.0, usage_tokens=40),
        graded(EVALUATION, 1, 0, "wrong", seconds=2.0, thinking_tokens=6, answer_tokens=4, attempts=3),
        graded(EVALUATION, 1, 1, "error", seconds=99.0, **{key: failed_sample()[0][key] for key in ("error", "error_class")}),
    ]
    values = speed_values(samples, wall_seconds=5.0)
    assert values["seconds_median"] == 2.0
    assert values["seconds_p90"] == pytest.approx(np.quantile([1.0, 4.0, 2.0], 0.9))
    assert values["first_token_median"] == 0.5
    assert values["tokens_per_second_median"] == 10.0  # of 100 / 0.5, 40 / 4, 10 / 2
    assert values["answers_per_second"] == pytest.approx(3 / 5)
    assert values["tokens_per_second"] == pytest.approx(151 / 5)
    assert values["retried_share"] == 0.25


def test_what_is_not_known_is_left_out():
    assert speed_values([]) == {}
    assert set(speed_values([graded(EVALUATION, 0, 0, "correct", seconds=0.0)])) == {"seconds_median", "seconds_p90", "retried_share"}


def test_an_answer_is_timed_from_its_first_token():
    """101 tokens, the first after half a second and the last half a second later: a hundred in half a second."""
    values = speed_values([graded(EVALUATION, 0, 0, "correct", seconds=1.0, usage_tokens=101, first_token_seconds=0.5)])
    assert values["tokens_per_second_median"] == 200.0
