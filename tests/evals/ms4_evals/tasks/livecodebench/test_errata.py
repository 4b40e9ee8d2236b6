"""Errata, against the recorded data where a problem of the list is in them."""

import pytest
from support.code_rows import recorded_rows, submissions

from ms4_evals.tasks.livecodebench.errata import ERRATA, erratum_of


def test_kinds():
    counts = {kind: list(ERRATA.values()).count(kind) for kind in set(ERRATA.values())}
    assert counts == {"multi-answer": 11, "interactive": 2, "bad-tests": 4}
    assert erratum_of("abc337_e", "E - Bad Juice") == "interactive"
    assert erratum_of("abc301_a", "A - Overall Winner") is None


@pytest.mark.parametrize("title", ["find-the-peaks", "Find the Peaks", "Find The Peaks "])
def test_leetcode_problems_are_known_by_title(title):
    assert erratum_of("3221", title) == "multi-answer"


@pytest.mark.data
def test_every_atcoder_problem_of_the_list_is_in_the_data(data_folder):
    ids = set(submissions(data_folder))
    assert {name for name in ERRATA if "_" in name} <= ids
    flagged = {row["question_id"] for row in recorded_rows(data_folder, with_statements=False) if erratum_of(row["question_id"], "")}
    assert flagged == {name for name in ERRATA if "_" in name}
    assert len(flagged) == 12
