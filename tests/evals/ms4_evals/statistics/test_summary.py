"""Summaries of a hand-made evaluation, every number counted by hand."""

import dataclasses

import pytest
from support.eval_client import arithmetic_tasks, both_modes

from ms4_evals.runner import make_plans
from ms4_evals.statistics.summary import compare_modes, disagrees, summarise
from ms4_evals.store.records import GradedSample


@pytest.fixture
def evaluations():
    none, high = make_plans(arithmetic_tasks(problems=2, samples=2), both_modes())
    return none.evaluation, high.evaluation


def graded(evaluation, problem, index, verdict, **values):
    planned = evaluation.problems[problem]
    sample = GradedSample(
        sample_id=10 * problem + index,
        problem_id=planned.problem_id,
        sample_index=index,
        gold=planned.gold,
        thinking="abcd",
        answer="xy",
        thinking_is_open=0,
        thinking_tokens=3,
        answer_tokens=1,
        finish_reason="stop",
        error=None,
        verdict=verdict,
        extracted="1",
        opinion=None,
    )
    return dataclasses.replace(sample, **values)


def test_a_complete_evaluation(evaluations):
    _, high = evaluations
    samples = [
        graded(high, 0, 0, "correct", opinion="correct"),
        graded(high, 0, 1, "wrong", thinking="", thinking_tokens=0, opinion="correct"),
        graded(
            high, 1, 0, "truncated", finish_reason="length", thinking_is_open=1, answer="", answer_tokens=0, extracted=None, opinion="wrong"
        ),
        graded(high, 1, 1, "no-answer", extracted=None, opinion="failed"),
    ]
    summary = summarise(high, samples, confidence=0.95)
    assert summary.is_complete
    assert (summary.missing, summary.errors, summary.graded, summary.at_limit, summary.open_thinking) == (0, 0, 4, 1, 1)
    assert summary.verdicts == {"correct": 1, "wrong": 1, "no-answer": 1, "truncated": 1, "error": 0}
    assert summary.score is not None
    assert summary.score.value == 0.25
    assert summary.pass_at == {1: 0.25, 2: 0.5}
    assert summary.cons_at == {1: 0.25, 2: 0.5}
    means = {name: groups["all"].mean for name, groups in summary.lengths.items() if groups["all"]}
    assert means == {
        "thinking_chars": 3.0,
        "answer_chars": 1.5,
        "total_chars": 4.5,
        "thinking_tokens": 2.25,
        "answer_tokens": 0.75,
        "total_tokens": 3.0,
    }
    correct, other = summary.lengths["total_chars"]["correct"], summary.lengths["total_chars"]["not_correct"]
    assert correct is not None
    assert other is not None
    assert (correct.mean, other.mean) == (6.0, 4.0)
    assert summary.opinions == {"agree": 2, "disagree": 1, "failed": 1}
    assert list(summary.disagreements) == [samples[1]]


def test_errors_and_missing_samples_never_count_as_wrong(evaluations):
    _, high = evaluations
    samples = [graded(high, 0, 0, "correct"), graded(high, 1, 0, "error", error="no connection", thinking="", answer="")]
    summary = summarise(high, samples, confidence=0.95)
    assert not summary.is_complete
    assert (summary.missing, summary.errors, summary.graded) == (2, 1, 1)
    assert summary.score is not None
    assert summary.score.value == 1.0
    assert summary.problem_means == {high.problems[0].problem_id: 1.0}


def test_nothing_yet(evaluations):
    summary = summarise(evaluations[0], [], confidence=0.95)
    assert (summary.score, summary.missing, summary.graded) == (None, 4, 0)
    assert summary.pass_at == {}


def test_the_modes_are_compared_problem_by_problem_and_only_when_complete(evaluations):
    none, high = evaluations

    def summary(evaluation, right):
        samples = [
            graded(evaluation, problem, index, "correct" if right[problem][index] else "wrong") for problem in (0, 1) for index in (0, 1)
        ]
        return summarise(evaluation, samples, confidence=0.95)

    complete = summary(none, [[1, 0], [0, 0]])
    difference = compare_modes(summary(high, [[1, 1], [1, 1]]), complete, confidence=0.95, resamples=200, seed=0)
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == (0.75, 0.5, 1.0)
    part = summarise(high, [graded(high, 0, 0, "correct")], confidence=0.95)
    assert compare_modes(part, complete, confidence=0.95, resamples=200, seed=0) is None


def test_different_boards_cannot_be_compared(evaluations):
    other = make_plans(arithmetic_tasks(problems=3, samples=2), both_modes())[0].evaluation
    with pytest.raises(AssertionError):
        compare_modes(
            summarise(evaluations[1], [], confidence=0.9), summarise(other, [], confidence=0.9), confidence=0.9, resamples=1, seed=0
        )


def test_disagreement_needs_an_opinion(evaluations):
    sample = graded(evaluations[0], 0, 0, "wrong")
    assert [disagrees(dataclasses.replace(sample, opinion=opinion)) for opinion in (None, "failed", "wrong", "correct")] == [
        False,
        False,
        False,
        True,
    ]
