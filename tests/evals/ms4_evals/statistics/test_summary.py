"""Summaries of a hand-made evaluation, every number counted by hand."""

import pytest
from support.made_stores import PROGRAMS, failed_sample, graded, made_evaluation, made_problems

from ms4_evals.statistics.summary import headline_score, summarise

HIGH = made_evaluation(problems=2, samples=2)
ERROR = {key: failed_sample("rate-limit")[0][key] for key in ("error", "error_class")}


def four_samples():
    return [
        graded(HIGH, 0, 0, "correct", opinion="correct", thinking_chars=4, answer_chars=2, usage_tokens=9, cost=0.5),
        graded(HIGH, 0, 1, "wrong", thinking_chars=0, answer_chars=2, thinking_tokens=0, opinion="correct", extracted="2"),
        graded(
            HIGH,
            1,
            0,
            "truncated",
            finish_reason="length",
            thinking_is_open=1,
            thinking_chars=4,
            answer_chars=0,
            answer_tokens=0,
            extracted=None,
            opinion="wrong",
        ),
        graded(HIGH, 1, 1, "no-answer", thinking_chars=4, answer_chars=2, extracted=None, opinion="failed", usage_tokens=5),
    ]


def test_a_complete_evaluation():
    samples = four_samples()
    summary = summarise(HIGH, samples, confidence=0.95)
    assert summary.is_complete
    assert (summary.missing, summary.errors, summary.graded, summary.at_limit, summary.open_thinking) == (0, 0, 4, 1, 1)
    assert summary.verdicts == {"correct": 1, "wrong": 1, "no-answer": 1, "truncated": 1, "error": 0}
    assert summary.score is not None
    assert summary.score.value == 0.25
    assert summary.pass_at == {1: 0.25, 2: 0.5}
    assert summary.cons_at == {1: 0.25, 2: 0.25}  # a tie of the right and a wrong answer, and nothing read
    means = {name: groups["all"].mean for name, groups in summary.lengths.items() if groups["all"]}
    assert means == {
        "thinking_chars": 3.0,
        "answer_chars": 1.5,
        "total_chars": 4.5,
        "thinking_tokens": 2.25,
        "answer_tokens": 0.75,
        "total_tokens": 3.0,
        "usage_tokens": 7.0,
    }
    usage = summary.lengths["usage_tokens"]
    assert [usage[group].count if usage[group] else 0 for group in ("all", "correct", "not_correct")] == [2, 1, 1]
    correct, other = summary.lengths["total_chars"]["correct"], summary.lengths["total_chars"]["not_correct"]
    assert correct is not None
    assert other is not None
    assert (correct.mean, other.mean, other.count) == (6.0, 4.0, 3)
    assert summary.opinions == {"agree": 2, "disagree": 1, "failed": 1}
    assert list(summary.disagreements) == [samples[1]]
    assert summary.second is not None
    assert (summary.second.name, summary.second.samples, summary.second.score.value) == ("math-verify", 3, 0.5)
    assert summary.cost is not None
    assert (summary.cost.total, summary.cost.samples, summary.cost.per_correct) == (0.5, 1, 0.5)
    first = summary.problems[HIGH.problems[0].problem_id]
    assert (first.correct, first.samples, first.first_is_correct, first.lengths["thinking_chars"]) == (1, 2, True, 2.0)


def test_errors_missing_and_ungraded_samples_never_count_as_wrong():
    samples = [graded(HIGH, 0, 0, "correct"), graded(HIGH, 1, 0, "error", **ERROR)]
    summary = summarise(HIGH, samples, confidence=0.95, ungraded=1)
    assert not summary.is_complete
    assert (summary.missing, summary.ungraded, summary.errors, summary.graded, summary.left_out) == (1, 1, 1, 1, 3)
    assert summary.error_classes == {"rate-limit": 1}
    assert summary.score is not None
    assert summary.score.value == 1.0
    assert summary.problem_means == {HIGH.problems[0].problem_id: 1.0}


@pytest.mark.parametrize(
    ("drawn", "ungraded"),
    [(("correct", "wrong", "wrong", "error"), 0), (("correct", "wrong", "wrong"), 0), (("correct", "wrong", "wrong"), 1)],
    ids=["an error", "missing", "ungraded"],
)
def test_a_headline_is_refused_while_anything_is_left_out_unless_asked_for(drawn, ungraded):
    samples = [
        graded(HIGH, number // 2, number % 2, verdict, **(ERROR if verdict == "error" else {})) for number, verdict in enumerate(drawn)
    ]
    summary = summarise(HIGH, samples, confidence=0.95, ungraded=ungraded)
    assert summary.left_out == 1
    assert headline_score(summary, allow_errors=False) is None
    allowed = headline_score(summary, allow_errors=True)
    assert allowed is not None
    assert allowed.value == 0.25  # the problems' means 1/2 and 0


def test_a_complete_evaluation_has_its_headline_either_way():
    summary = summarise(HIGH, four_samples(), confidence=0.95)
    assert headline_score(summary, allow_errors=False) == headline_score(summary, allow_errors=True) == summary.score


def test_nothing_yet():
    summary = summarise(HIGH, [], confidence=0.95)
    assert (summary.score, summary.missing, summary.graded, summary.cost, summary.second) == (None, 4, 0, None, None)
    assert (summary.pass_at, summary.cons_at, summary.breakdowns, summary.problems) == ({}, {}, {}, {})
    assert headline_score(summary, allow_errors=True) is None


def test_programs_cannot_vote():
    """Two right programs are hardly ever equal, so the most frequent program says nothing."""
    evaluation = made_evaluation("livecodebench", problems=1, samples=2, grader_id=PROGRAMS)
    samples = [graded(evaluation, 0, index, "correct", extracted=f"print({index})") for index in (0, 1)]
    summary = summarise(evaluation, samples, confidence=0.95, failure_classes={"WA": 3})
    assert (summary.cons_at, summary.pass_at, summary.failure_classes) == ({}, {1: 1.0, 2: 1.0}, {"WA": 3})


def test_scores_with_and_without_errata():
    problems = made_problems("livecodebench", 4, lambda i: {"errata": "interactive"} if i == 0 else {})
    evaluation = made_evaluation("livecodebench", problems=problems, samples=1, grader_id=PROGRAMS)
    samples = [graded(evaluation, index, 0, "correct" if index == 1 else "wrong") for index in range(4)]
    summary = summarise(evaluation, samples, confidence=0.95)
    assert summary.score is not None
    assert summary.without_errata is not None
    assert (summary.score.value, summary.without_errata.value) == (pytest.approx(1 / 4), pytest.approx(1 / 3))
    assert [(part.value, part.problems) for part in summary.breakdowns["errata"]] == [("interactive", 1), ("(none)", 3)]
    assert summarise(HIGH, four_samples(), confidence=0.95).without_errata is None


def test_a_first_sample_that_is_not_there_is_not_replaced_by_the_second():
    summary = summarise(HIGH, [graded(HIGH, 0, 1, "correct")], confidence=0.95)
    assert summary.problems[HIGH.problems[0].problem_id].first_is_correct is None
