"""Whether what a store says of an evaluation still adds up to the identity that it goes by.

Samples and grades carry seals; data, prompts, grader and sampling are what identities are hashes of. A problem that was taken out, a right
answer or a setting that was edited afterwards gives another hash, and the score would stand in a column that it does not belong to. The
number of samples and the facts that scores are broken down by are in no identity and are not covered.
Exercise it: ``pytest tests/evals/ms4_evals/store/test_identities.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ms4_evals.store.records import Evaluation
from ms4_evals.tasks.base import board_of, column_of, grading_of, sampling_id
from ms4_train.errors import EvaluationError


def verify_identities(evaluations: Iterable[Evaluation], path: Path) -> None:
    """Make every identity of the evaluations anew from its parts, and compare.

    Raises:
        EvaluationError: a part was changed after it was written.
    """
    for evaluation in evaluations:
        rows = [(problem.problem_id, problem.gold, problem.prompt_id) for problem in evaluation.problems]
        board = board_of(evaluation.task, evaluation.grader_id, rows)
        found = {
            "data, prompts or grader": board == evaluation.board_id,
            "the grading of a problem": all(
                problem.grading_id == grading_of(evaluation.grader_id, problem.gold) for problem in evaluation.problems
            ),
            "sampling": sampling_id(evaluation.sampling) == evaluation.sampling_id,
            "mode": column_of(board, evaluation.mode, evaluation.sampling) == evaluation.column_id,
        }
        if changed := [name for name, is_same in found.items() if not is_same]:
            raise EvaluationError(
                f"the description of {ascii(evaluation.task)[1:-1]}, mode {evaluation.mode}, was changed after it was written:"
                f" {changed[0]} no longer gives its identity.",
                file=path,
                fix="restore the file from a copy; nothing in it can be trusted until then.",
            )
