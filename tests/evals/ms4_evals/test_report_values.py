"""Summaries as JSON values: rounding, refused scores, excerpts of disputed answers."""

import json

import pytest
from support.made_stores import PROGRAMS, failed_sample, graded, made_evaluation, made_problems, made_run, write_store

from ms4_evals.graders.base import Grade
from ms4_evals.report_values import pairing_values, rounded, summary_values
from ms4_evals.statistics.pairs import compare_pairs
from ms4_evals.statistics.stored import read_summary
from ms4_evals.statistics.summary import summarise
from ms4_evals.store.results import ResultStore


def test_rounding_reaches_every_number():
    assert rounded({"a": [1 / 3, {"b": 2 / 3}], "c": 7, "d": "x", "e": None}) == {
        "a": [0.333333, {"b": 0.666667}],
        "c": 7,
        "d": "x",
        "e": None,
    }


@pytest.mark.parametrize(("value", "shown"), [(1.23456e-9, 1.235e-9), (0.0, 0.0), (-0.000123456, -0.0001235), (0.00123456, 0.001235)])
def test_small_numbers_keep_their_digits(value, shown):
    """A p-value of 1e-9 must not become zero, nor the price of an answer."""
    assert rounded(value) == shown


def test_a_refused_score_is_refused_in_every_part():
    problems = made_problems("t", 4, lambda i: {"difficulty": "easy" if i else "hard", "errata": "bad-tests" if i == 1 else ""})
    evaluation = made_evaluation("t", problems=problems, samples=2)
    samples = [graded(evaluation, p, i, "correct", opinion="correct", thinking_tokens=p) for p in range(4) for i in range(2)]
    scores = ("score", "without_errata", "pass_at", "cons_at", "breakdowns", "second_grader")
    complete = summary_values(summarise(evaluation, samples, confidence=0.95))
    assert all(complete[name] for name in scores)
    part = summarise(evaluation, samples[:-1], confidence=0.95)
    refused = summary_values(part)
    assert [refused[name] for name in scores] == [None, None, {}, {}, {}, None]
    assert (refused["complete"], refused["left_out"], refused["missing"]) == (False, 1, 1)
    assert all(summary_values(part, allow_errors=True)[name] for name in scores)


def test_disputed_answers_are_shown_with_their_end_and_class(tmp_path):
    evaluation = made_evaluation("code", problems=1, samples=2, grader_id=PROGRAMS, second_grader="official")

    def rule(evaluation, problem, index):
        if index:
            return failed_sample()
        grade = Grade("wrong", "c" * 5000, details={"class": "TLE", "seconds": 1.5}, opinion="correct")
        return {"answer": "a" * 500 + "the end"}, grade

    path = write_store(tmp_path / "r.sqlite", {"made": rule}, [evaluation])
    with ResultStore.read(path) as store:
        summary, _ = read_summary(store, made_run().run_id, evaluation, confidence=0.95)
        values = summary_values(summary, store)
    (item,) = values["disagreements"]
    assert item["class"] == "TLE"
    assert item["end_of_answer"].endswith("the end")
    assert (len(item["end_of_answer"]), len(item["extracted"])) == (200, 200)
    assert "seconds" not in json.dumps(values), "what differs from run to run is in no report"
    assert "end_of_answer" not in summary_values(summary)["disagreements"][0]


def test_a_comparison():
    none, high = (made_evaluation(mode=mode, problems=3, samples=1) for mode in ("none", "high"))
    summaries = [
        summarise(evaluation, [graded(evaluation, p, 0, verdict) for p in range(3)], confidence=0.95)
        for evaluation, verdict in ((high, "correct"), (none, "wrong"))
    ]
    pairing = compare_pairs(*summaries, confidence=0.95, resamples=100, seed=0)
    assert pairing is not None
    values = pairing_values(pairing)
    assert (values["value"], values["method"], values["problems"]) == (1.0, "wilson", 3)
    assert values["mcnemar"] == {"both": 0, "first_only": 3, "second_only": 0, "neither": 0, "p_value": 0.25}
    assert values["sign_flip_p"] == 0.25
    assert values["length_ratios"]["total_chars"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert json.loads(json.dumps(values)) == values
