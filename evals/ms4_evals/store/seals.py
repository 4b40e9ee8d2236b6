"""Seals: every sample and every grade carries a hash of its own row, so that a record that was edited afterwards is noticed.

A seal proves no origin: whoever computes it anew can change what they like. It catches edits by hand, by other programs, and bad disks.
Exercise it: ``pytest tests/evals/ms4_evals/store/test_seals.py``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from ms4_evals.identity import content_hash
from ms4_evals.store.schema import database_errors
from ms4_train.errors import EvaluationError

SAMPLE_COLUMNS = (
    "run_id, problem_id, prompt_id, mode, sampling_id, sample_index, seed, prompt_hash, thinking, answer, thinking_is_open, thinking_chars,"
    " answer_chars, thinking_tokens, answer_tokens, finish_reason, seconds, prompt_tokens, usage_tokens, usage_thinking_tokens, cost,"
    " endpoint, attempts, first_token_seconds, error, error_class"
)
"""Every column of a sample but its number and its seal, in the order of the table."""

GRADE_COLUMNS = "sample_id, grading_id, verdict, extracted, opinion, details"


def seal_of(kind: str, values: Sequence[object]) -> str:
    """The seal of a row.

    Args:
        kind: ``sample`` or ``grade``.
        values: of ``SAMPLE_COLUMNS`` or ``GRADE_COLUMNS``, as the database gives them back.
    """
    return content_hash([kind, *values])


def verify_seals(connection: sqlite3.Connection, path: Path, run_id: str) -> int:
    """Compare every sample and grade of a run with its seal; returns how many rows were looked at.

    Raises:
        EvaluationError: a record was changed after it was written.
    """
    looked_at = 0
    queries = (
        ("sample", f"SELECT seal, problem_id, sample_index, mode, {SAMPLE_COLUMNS} FROM samples WHERE run_id = ?"),
        (
            "grade",
            f"SELECT g.seal, s.problem_id, s.sample_index, s.mode, {', '.join('g.' + name for name in GRADE_COLUMNS.split(', '))}"
            " FROM grades g JOIN samples s ON s.sample_id = g.sample_id WHERE s.run_id = ?",
        ),
    )
    with database_errors(path):
        for kind, query in queries:
            for seal, problem, index, mode, *values in connection.execute(query, (run_id,)):
                looked_at += 1
                if seal != seal_of(kind, values):
                    raise EvaluationError(
                        f"a stored {kind} was changed after it was written: {problem}, sample {index}, mode {mode}.",
                        file=path,
                        fix="restore the file from a copy; nothing in it can be trusted until then.",
                    )
    return looked_at
