"""Questions to a store that reports, status and exports ask: counts and streams, never all texts at once.

Exercise it: ``pytest tests/evals/ms4_evals/store/test_queries.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ms4_evals.store.records import Evaluation
from ms4_evals.store.results import SAMPLES_OF_EVALUATION, ResultStore, evaluation_parameters

# A record that somebody edited may hold anything in place of JSON.
_CLASS = "CASE WHEN json_valid(g.details) AND json_type(g.details, '$.class') = 'text' THEN json_extract(g.details, '$.class') END"
_TOKENS = "coalesce(s.usage_tokens, s.thinking_tokens + s.answer_tokens)"


@dataclass(frozen=True)
class Counts:
    """How far an evaluation is.

    Attributes:
        drawn: samples that are there, errors included.
        errors: by class.
        problems: (correct, graded) samples of every problem with graded ones, errors left out.
        seconds, timed: that answered samples took, all added up, and how many those are.
    """

    drawn: int
    ungraded: int
    errors: dict[str, int]
    problems: list[tuple[int, int]]
    seconds: float
    timed: int


@dataclass(frozen=True)
class Session:
    """A start of a run.

    Attributes:
        started: when, in UTC, as ISO 8601.
        answers, tokens, seconds: of the answered samples since, all added up. Tokens as the server or engine counts, else as the common
            tokenizer does.
    """

    started: str
    answers: int
    tokens: int
    seconds: float


EXPORT_COLUMNS = (
    *("sample_id", "problem_id", "sample_index", "seed", "prompt_hash", "gold", "question", "facts"),
    *("thinking", "answer", "thinking_is_open", "thinking_chars", "answer_chars", "thinking_tokens", "answer_tokens"),
    *("prompt_tokens", "usage_tokens", "usage_thinking_tokens", "cost", "seconds", "first_token_seconds", "endpoint", "attempts"),
    *("finish_reason", "error", "error_class", "verdict", "extracted", "opinion", "details"),
)
"""What ``sample_rows`` gives, in order; ``facts`` and ``details`` are JSON as text."""
_TABLES = {"gold": "p", "question": "p", "facts": "p", "verdict": "g", "extracted": "g", "opinion": "g", "details": "g"}


def count_ungraded(store: ResultStore, run_id: str, evaluation: Evaluation) -> int:
    """Drawn samples without a verdict under the evaluation's grading."""
    return next(store.select(f"SELECT count(*) {SAMPLES_OF_EVALUATION} AND g.verdict IS NULL", evaluation_parameters(run_id, evaluation)))[
        0
    ]


def failure_classes(store: ResultStore, run_id: str, evaluation: Evaluation) -> dict[str, int]:
    """Samples that are not correct, by the ``class`` that their grader noted (``WA``, ``TLE`` ...); the most frequent first."""
    rows = store.select(
        f"SELECT {_CLASS} AS class, count(*) {SAMPLES_OF_EVALUATION} AND g.verdict IS NOT NULL AND g.verdict != 'correct'"
        " GROUP BY class HAVING class IS NOT NULL ORDER BY 2 DESC, 1",
        evaluation_parameters(run_id, evaluation),
    )
    return dict(rows)


def counts(store: ResultStore, run_id: str, evaluation: Evaluation) -> Counts:
    """How far an evaluation is, in two queries that read no text."""
    parameters = evaluation_parameters(run_id, evaluation)
    rows = list(
        store.select(
            "SELECT count(*), sum(g.verdict IS NULL), sum(s.error IS NOT NULL), sum(g.verdict = 'correct'),"
            " sum(CASE WHEN s.error IS NULL THEN s.seconds ELSE 0 END)"
            f" {SAMPLES_OF_EVALUATION} GROUP BY p.position",
            parameters,
        )
    )
    errors = store.select(
        f"SELECT coalesce(s.error_class, 'unknown'), count(*) {SAMPLES_OF_EVALUATION} AND s.error IS NOT NULL GROUP BY 1 ORDER BY 1",
        parameters,
    )
    drawn = sum(row[0] for row in rows)
    # An error has a verdict of its own, which is no grade.
    problems = [(correct or 0, graded) for count, waiting, failed, correct, _ in rows if (graded := count - waiting - failed) > 0]
    failed = sum(row[2] for row in rows)
    return Counts(drawn, sum(row[1] for row in rows), dict(errors), problems, sum(row[4] for row in rows), drawn - failed)


def has_samples(store: ResultStore, run_id: str) -> bool:
    """Whether anything of a run was drawn."""
    return next(store.select("SELECT EXISTS (SELECT 1 FROM samples WHERE run_id = ?)", (run_id,)))[0] == 1


def error_examples(store: ResultStore, run_id: str, evaluation: Evaluation) -> dict[str, str]:
    """What one sample of every class of errors ended in, the first that is stored."""
    rows = store.select(
        f"SELECT coalesce(s.error_class, 'unknown'), s.error, min(s.sample_id) {SAMPLES_OF_EVALUATION} AND s.error IS NOT NULL"
        " GROUP BY 1 ORDER BY 1",
        evaluation_parameters(run_id, evaluation),
    )
    return {name: text for name, text, _ in rows}


def last_session(store: ResultStore, run_id: str) -> Session | None:
    """The latest start of a run, with what has come since; None for a run that another one has followed in this store."""
    latest = next(store.select("SELECT run_id, started, first_sample FROM sessions ORDER BY rowid DESC LIMIT 1"), None)
    if latest is None or latest[0] != run_id:
        return None
    answers, tokens, seconds = next(
        store.select(
            f"SELECT count(*), coalesce(sum({_TOKENS}), 0), coalesce(sum(s.seconds), 0)"
            " FROM samples s WHERE s.sample_id >= ? AND s.run_id = ? AND s.error IS NULL",
            (latest[2], run_id),
        )
    )
    return Session(latest[1], answers, tokens, seconds)


def sample_rows(store: ResultStore, run_id: str, evaluation: Evaluation) -> Iterator[tuple[Any, ...]]:
    """``EXPORT_COLUMNS`` of every drawn sample, graded or not, by problem and index; one row in memory at a time."""
    columns = ", ".join(f"{_TABLES.get(name, 's')}.{name}" for name in EXPORT_COLUMNS)
    return store.select(
        f"SELECT {columns} {SAMPLES_OF_EVALUATION} ORDER BY p.position, s.sample_index", evaluation_parameters(run_id, evaluation)
    )
