"""Reading and writing a results store.

    with ResultStore.open(path) as store:          # one writer; a second one is refused
        store.register(run, config, versions, evaluations)
        store.add(run.run_id, sample, grade, grading_id)
    with ResultStore.read(path) as store:          # any number, also beside a writer
        store.graded_samples(run_id, evaluation)

Exercise it: ``pytest tests/evals/ms4_evals/store/test_results.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

from ms4_evals.graders.integer import Grade
from ms4_evals.store.lock import exclusive_lock
from ms4_evals.store.records import Evaluation, GradedSample, PlannedProblem, RunRecord, Sample
from ms4_evals.store.schema import connect, database_errors, not_a_store
from ms4_evals.tasks.base import MODES, Mode
from ms4_train.errors import EvaluationError
from ms4_train.untrusted import parse_json

_KEY_COLUMNS = "run_id = ? AND problem_id = ? AND prompt_id = ? AND mode = ? AND sampling_id = ? AND sample_index = ?"
# The samples of an evaluation, joined to the problems that it plans; parameters: column, run, mode, sampling, samples.
_SAMPLES_OF_EVALUATION = """
    FROM problems p
    JOIN samples s ON s.problem_id = p.problem_id AND s.prompt_id = p.prompt_id
    LEFT JOIN grades g ON g.sample_id = s.sample_id AND g.grading_id = p.grading_id
    WHERE p.column_id = ? AND s.run_id = ? AND s.mode = ? AND s.sampling_id = ? AND s.sample_index < ?
"""


class ResultStore:
    """One open store. Use ``open`` or ``read`` as context managers."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | Path) -> Iterator[Self]:
        """Open a store to write, making it when it is not there, and hold its lock.

        Raises:
            EvaluationError: another process writes to it, or the file is not a store.
            StorageError: the file cannot be written.
        """
        path = Path(path)
        if path.is_dir():
            raise not_a_store(path)  # before a lock file is laid beside it
        with exclusive_lock(path.with_name(path.name + ".lock")):
            connection = connect(path, writable=True)
            try:
                yield cls(path, connection)
            finally:
                connection.close()

    @classmethod
    @contextlib.contextmanager
    def read(cls, path: str | Path) -> Iterator[Self]:
        """Open a store to read.

        Raises:
            EvaluationError: no such file, or the file is not a store.
        """
        connection = connect(Path(path), writable=False)
        try:
            yield cls(Path(path), connection)
        finally:
            connection.close()

    def register(self, run: RunRecord, config: Mapping[str, Any], versions: Mapping[str, str], evaluations: Sequence[Evaluation]) -> None:
        """Record a run, this start of it, and what it will evaluate; what is known already is brought up to date."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (run_id) DO UPDATE SET label = excluded.label, config = excluded.config",
                (run.run_id, run.label, _dump(run.model), run.seed, _dump(config)),
            )
            started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self._connection.execute("INSERT INTO sessions VALUES (?, ?, ?)", (run.run_id, _dump(versions), started))
            for evaluation in evaluations:
                self._register_evaluation(run.run_id, evaluation)

    def finished(self, run_id: str, evaluation: Evaluation) -> set[tuple[str, int]]:
        """(problem id, sample index) of every sample that need not be drawn again; errors do not count."""
        rows = self._execute(
            f"SELECT s.problem_id, s.sample_index {_SAMPLES_OF_EVALUATION} AND s.error IS NULL", _parameters(run_id, evaluation)
        )
        return {(row[0], row[1]) for row in rows}

    def add(self, run_id: str, sample: Sample, grade: Grade, grading_id: str) -> None:
        """Commit one sample with its verdict; it is on the disk when this returns. An earlier error of the same sample is replaced."""
        key = (run_id, sample.problem_id, sample.prompt_id, sample.mode, sample.sampling_id, sample.sample_index)
        values = (
            *key,
            sample.seed,
            sample.prompt_hash,
            sample.thinking,
            sample.answer,
            sample.thinking_is_open,
            len(sample.thinking),
            len(sample.answer),
            sample.thinking_tokens,
            sample.answer_tokens,
            sample.finish_reason,
            sample.seconds,
            sample.error,
        )
        with self._transaction():
            self._connection.execute(f"DELETE FROM samples WHERE {_KEY_COLUMNS} AND error IS NOT NULL", key)
            cursor = self._connection.execute(f"INSERT INTO samples VALUES (NULL, {', '.join('?' * len(values))})", values)
            assert cursor.lastrowid is not None
            self._insert_grade(cursor.lastrowid, grading_id, grade)

    def add_grade(self, sample_id: int, grading_id: str, grade: Grade) -> None:
        """Commit the verdict of another grading on a stored sample."""
        with self._transaction():
            self._insert_grade(sample_id, grading_id, grade)

    def set_opinions(self, opinions: Sequence[tuple[str, int, str]]) -> None:
        """Commit second opinions on graded samples, as (opinion, sample id, grading id)."""
        with self._transaction():
            self._connection.executemany("UPDATE grades SET opinion = ? WHERE sample_id = ? AND grading_id = ?", opinions)

    def ungraded(self, run_id: str, evaluation: Evaluation) -> list[tuple[int, PlannedProblem, Sample]]:
        """Stored samples without a verdict under the evaluation's grading, as (sample id, problem, sample)."""
        problems = {problem.problem_id: problem for problem in evaluation.problems}
        columns = ", ".join(f"s.{field.name}" for field in dataclasses.fields(Sample))
        rows = self._execute(
            f"SELECT s.sample_id, {columns} {_SAMPLES_OF_EVALUATION} AND g.verdict IS NULL ORDER BY s.sample_id",
            _parameters(run_id, evaluation),
        )
        samples = [(row[0], Sample(*row[1:])) for row in rows]
        return [(sample_id, problems[sample.problem_id], sample) for sample_id, sample in samples]

    def graded_samples(self, run_id: str, evaluation: Evaluation) -> list[GradedSample]:
        """Every stored and graded sample of an evaluation, by problem and index, whenever and in whatever order they came."""
        tables = {"gold": "p", "verdict": "g", "extracted": "g", "opinion": "g"}
        columns = ", ".join(f"{tables.get(field.name, 's')}.{field.name}" for field in dataclasses.fields(GradedSample))
        rows = self._execute(
            f"SELECT {columns} {_SAMPLES_OF_EVALUATION} AND g.verdict IS NOT NULL ORDER BY p.position, s.sample_index",
            _parameters(run_id, evaluation),
        )
        return [GradedSample(*row) for row in rows]

    def runs(self) -> list[RunRecord]:
        """Every run of the store, in the order they were first registered."""
        rows = self._execute("SELECT label, model, seed FROM runs ORDER BY rowid")
        return [RunRecord(row[0], parse_json(row[1], file=self.path), row[2]) for row in rows]

    def versions(self, run_id: str) -> list[dict[str, str]]:
        """The distinct sets of library versions that a run was computed with, oldest first."""
        rows = self._execute("SELECT versions FROM sessions WHERE run_id = ? GROUP BY versions ORDER BY min(rowid)", (run_id,))
        return [parse_json(row[0], file=self.path) for row in rows]

    def evaluations(self, run_id: str) -> list[Evaluation]:
        """Everything that a run has been asked to evaluate, in the order it was first registered."""
        rows = self._execute(
            "SELECT task, title, mode, board_id, column_id, sampling_id, sampling, grader_id, uses_second_opinion, samples"
            " FROM evaluations WHERE run_id = ? ORDER BY rowid",
            (run_id,),
        )
        return [self._evaluation(row) for row in rows]

    def _evaluation(self, row: tuple[Any, ...]) -> Evaluation:
        problems = self._execute(
            "SELECT problem_id, prompt_id, grading_id, gold, question FROM problems WHERE column_id = ? ORDER BY position", (row[4],)
        )
        sampling = parse_json(row[6], file=self.path)
        numbers = isinstance(sampling, dict) and all(isinstance(value, int | float) for value in sampling.values())
        if row[2] not in MODES or not numbers:
            raise EvaluationError("the store is damaged: an evaluation without mode or sampling.", file=self.path, fix="restore the file.")
        return Evaluation(
            task=row[0],
            title=row[1],
            mode=cast(Mode, row[2]),
            board_id=row[3],
            column_id=row[4],
            sampling_id=row[5],
            sampling=sampling,
            grader_id=row[7],
            uses_second_opinion=bool(row[8]),
            samples=row[9],
            problems=tuple(PlannedProblem(*problem) for problem in problems),
        )

    def _register_evaluation(self, run_id: str, evaluation: Evaluation) -> None:
        self._connection.execute(
            "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (run_id, column_id) DO UPDATE SET title = excluded.title, samples = excluded.samples",
            (
                run_id,
                evaluation.column_id,
                evaluation.task,
                evaluation.title,
                evaluation.mode,
                evaluation.board_id,
                evaluation.sampling_id,
                _dump(evaluation.sampling),
                evaluation.grader_id,
                evaluation.uses_second_opinion,
                evaluation.samples,
            ),
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO problems VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (evaluation.column_id, position, item.problem_id, item.prompt_id, item.grading_id, item.gold, item.question)
                for position, item in enumerate(evaluation.problems)
            ],
        )

    def _insert_grade(self, sample_id: int, grading_id: str, grade: Grade) -> None:
        self._connection.execute("INSERT INTO grades VALUES (?, ?, ?, ?, NULL)", (sample_id, grading_id, grade.verdict, grade.extracted))

    def _execute(self, statement: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        with database_errors(self.path):
            return self._connection.execute(statement, tuple(parameters)).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with database_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _parameters(run_id: str, evaluation: Evaluation) -> tuple[Any, ...]:
    return (evaluation.column_id, run_id, evaluation.mode, evaluation.sampling_id, evaluation.samples)


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=False, allow_nan=False)
