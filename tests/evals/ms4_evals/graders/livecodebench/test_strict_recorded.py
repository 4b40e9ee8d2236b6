"""The strict grader against LiveCodeBench's recorded verdicts: 220 failing tests, and the 1,563 public tests of programs that passed.

The exceptions are the recorded verdicts' fault, each for a reason that can be looked up in the program:

- ``PASSING``: recorded as failing, and right. Four read ``open(0)``, which in the recording process was its own standard input, not the
  test's, so it waited for the alarm. Two compute in a thread and do not join it; a process ends when its threads have, the recording
  looked at the output before. Two are right but slow, close to the limit of 6 s, on which a machine's speed decides.
- ``OTHER_CLASS``: failing, but for another reason. Two compute in a thread that is not joined and that never ends: too slow, recorded as
  a wrong answer, because nothing had been printed when the recording looked. One returns an integer of 40 million digits: a wrong
  answer, recorded as a runtime error, because the recording failed to print it into its message.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.recorded_verdicts import Recorded, recorded_verdicts

from ms4_evals.graders.livecodebench.strict import StrictGrader, TestRun

pytestmark = pytest.mark.data

PASSING = {
    "abc315_b": "open(0)",
    "abc349_a": "open(0)",
    "abc359_b": "open(0)",
    "abc365_b": "open(0)",
    "abc368_f": "thread",
    "abc382_c": "thread",
}
SLOW = {"abc301_e": "4 to 6 s", "abc363_c": "5 to 7 s"}
"""Pass or ``TLE``, as fast as the machine is."""
OTHER_CLASS = {"abc341_f": "TLE", "abc366_e": "TLE", "3414": "WA"}
LEAST_REJECTED = 212


@pytest.fixture(scope="module")
def rows(data_folder) -> list[Recorded]:
    return recorded_verdicts(data_folder)


def failing_runs(sandbox, rows: list[Recorded]) -> dict[str, TestRun]:
    """What the recorded failing test of each row comes to."""
    grader = StrictGrader(sandbox)

    def run(row: Recorded) -> TestRun:
        assert row.failing is not None
        return grader.grade(row.failing, row.code).runs[0]

    with ThreadPoolExecutor(2) as pool:
        return {row.problem_id: run for row, run in zip(rows, pool.map(run, rows), strict=True)}


def public_failures(sandbox, rows: list[Recorded]) -> tuple[int, list[str]]:
    """How many public tests there are, and which of them fail."""
    grader = StrictGrader(sandbox)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda row: grader.grade(row.public, row.code, run_all=True), rows))
    failed = [
        f"{row.problem_id} test {run.index}: {run.verdict}, printed {run.got[:60]!r}"
        for row, result in zip(rows, results, strict=True)
        for run in result.runs
        if run.verdict != "pass"
    ]
    return sum(len(result.runs) for result in results), failed


def wrong_classes(rows: list[Recorded], runs: dict[str, TestRun]) -> list[str]:
    """Failing tests that did not come to what is expected of them."""
    found = []
    for row in rows:
        verdict = runs[row.problem_id].verdict
        wanted = {"pass"} if row.problem_id in PASSING else {OTHER_CLASS.get(row.problem_id, row.failing_class)}
        if verdict not in wanted | ({"pass"} if row.problem_id in SLOW else set()):
            found.append(f"{row.problem_id}: recorded {row.failing_class}, came to {verdict}")
    return found


def test_the_data_is_what_the_numbers_are_about(rows):
    assert len(rows) == 880
    assert sum(row.failing is not None for row in rows) == 220
    passed = [row for row in rows if row.passed and row.public]
    assert (len(passed), sum(len(row.public.tests) for row in passed)) == (594, 1563)


def test_a_sample_of_failing_tests(sandbox, rows):
    # Every ninth, without the slow ones; and all exceptions that end quickly.
    failing = [row for row in rows if row.failing]
    quick = [row for row in failing if row.failing_class != "TLE" and row.problem_id not in OTHER_CLASS]
    sample = quick[::9] + [row for row in failing if row.problem_id in PASSING]
    assert len(sample) >= 25
    runs = failing_runs(sandbox, sample)
    assert wrong_classes(sample, runs) == []
    assert {run.verdict for run in runs.values()} >= {"WA", "pass"}


def test_a_sample_of_passing_programs(sandbox, rows):
    sample = [row for row in rows if row.passed and row.public][::40]
    tests, failed = public_failures(sandbox, sample)
    assert tests >= 30
    assert failed == []


@pytest.mark.slow
def test_all_failing_tests(sandbox, rows):
    failing = [row for row in rows if row.failing]
    runs = failing_runs(sandbox, failing)
    assert wrong_classes(failing, runs) == []
    assert sum(run.verdict != "pass" for run in runs.values()) >= LEAST_REJECTED


@pytest.mark.slow
def test_all_public_tests_of_passing_programs(sandbox, rows):
    tests, failed = public_failures(sandbox, [row for row in rows if row.passed and row.public])
    assert tests == 1563
    # All of them are accepted; a parsed sample might have been wrong, and none is.
    assert failed == []
