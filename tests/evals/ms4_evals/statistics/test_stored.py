"""From a store to a summary: ungraded samples and failure classes come along, and no text is read for it."""

import pytest
from support.made_stores import COUNTS_BYTES, PROGRAMS, bytes_read, failed_sample, made_evaluation, made_run, write_store

from ms4_evals.graders.base import Grade
from ms4_evals.statistics.stored import read_summary
from ms4_evals.store.results import ResultStore

EVALUATION = made_evaluation("livecodebench", problems=4, samples=2, grader_id=PROGRAMS)


def rule(evaluation, problem, index):
    """Problem 0 right, 1 wrong in two ways, 2 ungraded and an error, 3 not drawn."""
    if problem == 1:
        return {}, Grade("wrong", "code", details={"class": ["TLE", "WA"][index], "input": "x" * 1000})
    if problem == 2:
        return ({}, None) if index == 0 else failed_sample("server")
    return ({}, Grade("correct", "code", details={"class": "pass"})) if problem == 0 else None


def test_a_summary_out_of_a_store(tmp_path):
    path = write_store(tmp_path / "r.sqlite", {"made": rule}, [EVALUATION])
    with ResultStore.read(path) as store:
        summary, samples = read_summary(store, made_run().run_id, EVALUATION, confidence=0.95)
    assert (summary.missing, summary.ungraded, summary.errors, summary.graded, len(samples)) == (2, 1, 1, 4, 5)
    assert summary.failure_classes == {"TLE": 1, "WA": 1}
    assert summary.error_classes == {"server": 1}
    assert summary.score is not None
    assert summary.score.value == 0.5


@pytest.mark.skipif(not COUNTS_BYTES, reason="this system does not count what a process reads")
def test_texts_are_not_read_for_a_summary(tmp_path):
    """400 samples of 40 kB: the summary may read a tenth of the store. Reading the texts, the control, reads all of it."""
    evaluation = made_evaluation(problems=100, samples=4)
    text = "a thought of some length, and then one more. " * 900

    def long(evaluation, problem, index):
        return {"thinking": text}, Grade("correct", "1")

    path = write_store(tmp_path / "r.sqlite", {"made": long}, [evaluation])
    size = path.stat().st_size
    assert size > 400 * 40_000
    with ResultStore.read(path) as store:
        start = bytes_read()
        summary, samples = read_summary(store, made_run().run_id, evaluation, confidence=0.95)
        summarised = bytes_read() - start
        assert summary.graded == 400
        for sample in samples:
            assert store.texts(sample).thinking == text
        assert bytes_read() - start - summarised > 0.9 * size
    assert summarised < size / 10
