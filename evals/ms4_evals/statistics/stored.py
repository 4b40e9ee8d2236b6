"""From a store to summaries.

Exercise it: ``pytest tests/evals/ms4_evals/statistics/test_stored.py``.
"""

from __future__ import annotations

from ms4_evals.statistics.summary import Summary, summarise
from ms4_evals.store.queries import count_ungraded, failure_classes
from ms4_evals.store.records import Evaluation, GradedSample
from ms4_evals.store.results import ResultStore


def read_summary(store: ResultStore, run_id: str, evaluation: Evaluation, *, confidence: float) -> tuple[Summary, list[GradedSample]]:
    """The summary of an evaluation as the store has it at this moment, and the graded samples that it is made of, without their texts.

    Args:
        store: may be written to meanwhile.
        run_id: whose samples.
        evaluation: one of ``store.evaluations(run_id)``.
        confidence: of every interval.
    """
    with store.snapshot():
        samples = store.graded_samples(run_id, evaluation)
        ungraded = count_ungraded(store, run_id, evaluation)
        classes = failure_classes(store, run_id, evaluation)
    return summarise(evaluation, samples, confidence=confidence, ungraded=ungraded, failure_classes=classes), samples
