"""Two runs problem by problem: differences counted by hand and against scipy; what differs in identity is refused and named."""

import dataclasses
import json

import pytest
from scipy.stats import binomtest
from support.made_stores import failed_sample, fill, made_evaluation, made_problems, made_run, right_or_wrong, write_store

from ms4_evals.compare import Side, compare_runs, differing_parts, find_run
from ms4_evals.graders.base import Grade
from ms4_evals.store.results import ResultStore
from ms4_train.errors import EvaluationError

PROBLEMS = made_problems("t", 10, lambda i: {"difficulty": "easy" if i < 5 else "hard"})
BOTH = [made_evaluation("t", mode, PROBLEMS, 2) for mode in ("none", "high")]
SETTINGS = {"confidence": 0.95, "resamples": 200}


def rule_of(right, characters=10):
    def rule(evaluation, problem, index):
        return {"thinking": "", "answer": "a" * characters}, Grade("correct" if right(problem, index) else "wrong", "1")

    return rule


def comparison(path, first, second, evaluations=BOTH, **settings):
    write_store(path, {"first": first, "second": second}, evaluations)
    with ResultStore.read(path) as store:
        return compare_runs(Side(store, made_run("first")), Side(store, made_run("second")), **SETTINGS, **settings)


def test_problems_scores_and_lengths(tmp_path):
    """First solves problems 0 to 6 with both samples, second 0 with both and 1 with one, in a quarter of the characters."""
    found = comparison(
        tmp_path / "r.sqlite", rule_of(lambda p, i: p < 7, characters=40), rule_of(lambda p, i: p == 0 or (p, i) == (1, 0), characters=10)
    )
    assert (found["first"]["label"], found["second"]["label"], found["only_first"], found["only_second"]) == ("first", "second", [], [])
    (task,) = found["tasks"]
    assert [mode["mode"] for mode in task["modes"]] == ["none", "high"]
    mode = task["modes"][0]
    assert (mode["first"]["score"], mode["second"]["score"]) == (0.7, 0.15)
    difference = mode["difference"]
    assert difference["value"] == 0.55
    assert difference["low"] <= 0.55 <= difference["high"]
    # First samples: 1 is solved by both, 2 to 6 by the first run only.
    assert difference["mcnemar"]["p_value"] == pytest.approx(binomtest(5, 5).pvalue)
    assert difference["length_ratios"]["total_chars"]["value"] == 4.0
    assert [(row["problem"], row["difference"]) for row in mode["problems"]] == [
        *((f"t/{p:03d}", 1.0) for p in range(2, 7)),
        ("t/001", 0.5),
    ]
    row = mode["problems"][-1]
    assert (row["first"]["correct"], row["second"]["correct"], row["facts"]) == (2, 1, {"difficulty": "easy"})
    assert (row["first"]["total_chars"], row["second"]["total_chars"]) == (40.0, 10.0)
    assert json.loads(json.dumps(found)) == found


def test_a_run_against_itself_does_not_differ(tmp_path):
    path = write_store(tmp_path / "r.sqlite", {"first": right_or_wrong(lambda e, p, i: p % 2 == 0)}, BOTH)
    with ResultStore.read(path) as store:
        side = Side(store, made_run("first"))
        for mode in compare_runs(side, side, **SETTINGS)["tasks"][0]["modes"]:
            assert mode["problems"] == []
            assert (mode["difference"]["value"], mode["difference"]["mcnemar"]["p_value"], mode["difference"]["sign_flip_p"]) == (0, 1, 1)


def test_two_stores_with_unlike_numbers_of_samples(tmp_path):
    """The number of samples is no part of an identity: it says how exactly a score is known."""
    more = [dataclasses.replace(evaluation, samples=5) for evaluation in BOTH]
    first = write_store(tmp_path / "a.sqlite", {"first": right_or_wrong(lambda *_: True)}, BOTH)
    second = write_store(tmp_path / "b.sqlite", {"second": right_or_wrong(lambda e, p, i: i == 0)}, more)
    with ResultStore.read(first) as a, ResultStore.read(second) as b:
        found = compare_runs(Side(a, find_run(a)), Side(b, find_run(b)), **SETTINGS)
    assert found["tasks"][0]["modes"][0]["difference"]["value"] == pytest.approx(0.8)


def changed(**parts):
    sampling = parts.pop("sampling", None)
    problems = parts.pop("problems", PROBLEMS)
    return made_evaluation("t", "high", problems, 2, sampling=sampling, **parts)


def with_problem(**values):
    return (dataclasses.replace(PROBLEMS[0], **values), *PROBLEMS[1:])


OTHERS = {
    "fewer problems": (changed(problems=PROBLEMS[:4]), "data (10 and 4 problems, 4 of them the same)"),
    "another gold": (changed(problems=with_problem(gold="77")), "data (other right answers or tests of 1 problems)"),
    "another order": (changed(problems=PROBLEMS[::-1]), "data (another order of the problems)"),
    "another prompt": (changed(problems=with_problem(prompt_id="f" * 64)), "prompt (of 1 problems)"),
    "another grader": (changed(grader_id="integer-box/2.0"), "grader (integer-box/1.0 and integer-box/2.0)"),
    "another sampling": (
        changed(sampling={"temperature": 0.7, "top_p": 1.0, "max_tokens": 99}),
        "sampling (max_tokens 4096 and 99)",
    ),
    "another identity": (changed(board="other"), "identity"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_is_refused_and_named(tmp_path, name):
    other, words = OTHERS[name]
    (said,) = differing_parts(BOTH[1], other)
    assert said.startswith(words)
    rule = right_or_wrong(lambda *_: True)
    first = write_store(tmp_path / "a.sqlite", {"first": rule}, BOTH)
    second = write_store(tmp_path / "b.sqlite", {"second": rule}, [BOTH[0], other])
    with ResultStore.read(first) as a, ResultStore.read(second) as b:
        sides = Side(a, find_run(a)), Side(b, find_run(b))
        with pytest.raises(EvaluationError) as caught:
            compare_runs(*sides, **SETTINGS)
        found = compare_runs(*sides, modes=["none"], **SETTINGS)
        assert [mode["mode"] for mode in found["tasks"][0]["modes"]] == ["none"]
    assert words in str(caught.value)
    assert "mode high" in str(caught.value)
    assert "--mode" in str(caught.value)


def test_several_parts_are_all_named():
    other = made_evaluation("t", "high", with_problem(gold="5", prompt_id="a"), 2, grader_id="x/1", sampling={"temperature": 0.0})
    assert [part.split(" ")[0] for part in differing_parts(BOTH[1], other)] == ["data", "prompt", "grader", "sampling"]


def test_tasks_of_one_run_only_are_listed_and_not_compared(tmp_path):
    rule = right_or_wrong(lambda *_: True)
    extra = made_evaluation("extra", "high", 2)
    path = tmp_path / "r.sqlite"
    with ResultStore.open(path) as store:
        fill(store, made_run("first"), [*BOTH, extra], rule)
        fill(store, made_run("second"), BOTH, rule)
        sides = Side(store, made_run("first")), Side(store, made_run("second"))
        found = compare_runs(*sides, **SETTINGS)
        assert (found["only_first"], found["only_second"]) == (["extra, high"], [])
        with pytest.raises(EvaluationError, match="not both runs have the task extra"):
            compare_runs(*sides, tasks=["extra"], **SETTINGS)


def test_runs_without_a_common_task_are_refused(tmp_path):
    rule = right_or_wrong(lambda *_: True)
    with ResultStore.open(tmp_path / "r.sqlite") as store:
        fill(store, made_run("first"), BOTH, rule)
        fill(store, made_run("second"), [made_evaluation("extra", "high", 2)], rule)
        with pytest.raises(EvaluationError, match="no task in common"):
            compare_runs(Side(store, made_run("first")), Side(store, made_run("second")), **SETTINGS)


def test_an_incomplete_run_is_refused_unless_asked_for(tmp_path):
    def rule(evaluation, problem, index):
        return failed_sample() if (evaluation.mode, problem) == ("high", 0) else ({}, Grade("correct", "1"))

    with pytest.raises(EvaluationError, match=r"not complete in the run second: 0 missing, 0 ungraded, 2 errors of 20") as caught:
        comparison(tmp_path / "a.sqlite", rule_of(lambda p, i: True), rule)
    assert "--allow-errors" in str(caught.value)
    found = comparison(tmp_path / "b.sqlite", rule_of(lambda p, i: True), rule, allow_errors=True)
    high = found["tasks"][0]["modes"][1]
    assert (high["difference"]["problems"], high["second"]["left_out"]) == (9, 2)


def test_runs_are_found_by_label_or_id(tmp_path):
    rule = right_or_wrong(lambda *_: True)
    with ResultStore.open(tmp_path / "r.sqlite") as store:
        with pytest.raises(EvaluationError, match="holds no run"):
            find_run(store)
        fill(store, made_run("one"), BOTH[:1], rule)
        assert find_run(store).label == "one"
        fill(store, made_run("two"), BOTH[:1], rule)
        fill(store, made_run("two", seed=1), BOTH[:1], rule)
        assert find_run(store, "one").run_id == find_run(store, made_run("one").run_id[:8]).run_id == made_run("one").run_id
        for name, words in (
            (None, "several runs"),
            ("two", "several runs are called two"),
            ("three", "no run is called three"),
            ("", "no run"),
        ):
            with pytest.raises(EvaluationError, match=words):
                find_run(store, name)
