"""Comparisons for people: every number that is in the JSON values, in tables that outside text cannot break."""

import io

import pytest
from rich.console import Console
from support.made_stores import made_evaluation, made_problems, made_run, write_store

from ms4_evals.compare import Side, compare_runs
from ms4_evals.compare_text import SHOWN_PROBLEMS, comparison_markdown, comparison_tables
from ms4_evals.graders.base import Grade
from ms4_evals.store.results import ResultStore

COUNT = 40


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The first run solves every problem and the second none but the last; with ten times the characters."""
    evaluation = made_evaluation("t", "high", made_problems("t", COUNT), 1)

    def rule(right, length):
        return lambda e, problem, i: ({"thinking": "", "answer": "x" * length}, Grade("correct" if right(problem) else "wrong", "1"))

    runs = {"one": rule(lambda p: True, 1000), "two": rule(lambda p: p == COUNT - 1, 100)}
    path = write_store(tmp_path_factory.mktemp("compare") / "r.sqlite", runs, [evaluation])
    with ResultStore.read(path) as store:
        return compare_runs(Side(store, made_run("one")), Side(store, made_run("two")), confidence=0.9, resamples=200)


def on_terminal(comparison):
    console = Console(file=io.StringIO(), width=160)
    for table in comparison_tables(comparison):
        console.print(table)
    return console.file.getvalue()


def test_markdown_has_the_numbers_and_every_problem(comparison):
    text = comparison_markdown(comparison)
    for phrase in (
        "# one against two",
        "Differences are one - two.",
        "90 % interval",
        "| high | 100.0 | 2.5 | +97.5 |",
        "exact McNemar on the first sample of each problem: 39 only one, 0 only two, 1 both, 0 neither",
        "output of one over two: 10 times the characters",
        "| t/000 | 1 of 1 | 0 of 1 | 1,000 | 100 |",
    ):
        assert phrase in text, phrase
    assert text.count("| t/") == COUNT - 1


def test_two_runs_of_one_label_are_told_apart(comparison):
    same = comparison | {"first": {"label": "one", "run_id": "aaaaaaaa"}, "second": {"label": "one", "run_id": "bbbbbbbb"}}
    assert comparison_markdown(same).startswith("# one \\[aaaaaa] against one \\[bbbbbb]")
    assert "one [aaaaaa] against one [bbbbbb]" in on_terminal(same)


def test_a_terminal_shows_the_first_problems_and_says_how_many_there_are(comparison):
    text = on_terminal(comparison)
    assert "+97.5" in text
    assert "39 problems differ" in text
    assert text.count("│ t/") == SHOWN_PROBLEMS
    assert f"and {COUNT - 1 - SHOWN_PROBLEMS} more" in text


def test_hostile_labels(comparison):
    hostile = "a|b\n# c [red]<script>\x1b[31m"
    changed = comparison | {"first": {"label": hostile, "run_id": "x"}, "only_first": [hostile]}
    text = comparison_markdown(changed)
    assert "<script>" not in text
    assert "\x1b" not in text + on_terminal(changed)
    assert [line for line in text.splitlines() if line.startswith("# ")] == [text.splitlines()[0]]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {6, 8}
    assert "[red]" in on_terminal(changed).replace("\n", ""), "a label is no markup"


def test_runs_that_do_not_differ(comparison):
    (task,) = comparison["tasks"]
    same = comparison | {"tasks": [task | {"modes": [task["modes"][0] | {"problems": []}]}]}
    assert "No problem differs." in comparison_markdown(same)
    assert "problems differ" not in on_terminal(same)
