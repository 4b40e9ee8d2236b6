"""Reading and writing a results store.

    with ResultStore.open(path) as store:          # one writer; a second one is refused
        store.register(run, config, versions, evaluations)
        sample_id = store.add(run.run_id, sample, grade, grading_id)
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

from ms4_evals.graders.base import Grade
from ms4_evals.store.identities import verify_identities
from ms4_evals.store.lock import exclusive_lock
from ms4_evals.store.records import Evaluation, GradedSample, PlannedProblem, RunRecord, Sample, SampleTexts
from ms4_evals.store.schema import connect, database_errors, not_a_store
from ms4_evals.store.seals import GRADE_COLUMNS, SAMPLE_COLUMNS, seal_of, verify_seals
from ms4_evals.tasks.base import MODES, Mode
from ms4_train.errors import EvaluationError
from ms4_train.untrusted import parse_json

_KEY_COLUMNS = "run_id = ? AND problem_id = ? AND prompt_id = ? AND mode = ? AND sampling_id = ? AND sample_index = ?"
# The samples of an evaluation, joined to the problems that it plans; parameters: column, run, mode, sampling, samples.
SAMPLES_OF_EVALUATION = """
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
            self._connection.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, (SELECT coalesce(max(sample_id), 0) + 1 FROM samples))",
                (run.run_id, _dump(versions), started),
            )
            for evaluation in evaluations:
                self._register_evaluation(run.run_id, evaluation)

    def finished(self, run_id: str, evaluation: Evaluation) -> set[tuple[str, int]]:
        """(problem id, sample index) of every sample that need not be drawn again; errors do not count."""
        rows = self._execute(
            f"SELECT s.problem_id, s.sample_index {SAMPLES_OF_EVALUATION} AND s.error IS NULL", evaluation_parameters(run_id, evaluation)
        )
        return {(row[0], row[1]) for row in rows}

    def add(self, run_id: str, sample: Sample, grade: Grade | None, grading_id: str) -> int:
        """Commit one sample, with its verdict where there is one; it is on the disk when this returns. Returns the sample's number.

        An earlier error of the same sample is replaced.
        """
        values = (
            *(run_id, sample.problem_id, sample.prompt_id, sample.mode, sample.sampling_id, sample.sample_index),
            *(sample.seed, sample.prompt_hash, sample.thinking, sample.answer, sample.thinking_is_open),
            *(len(sample.thinking), len(sample.answer), sample.thinking_tokens, sample.answer_tokens),
            *(sample.finish_reason, sample.seconds, sample.prompt_tokens, sample.usage_tokens, sample.usage_thinking_tokens),
            *(sample.cost, sample.endpoint, sample.attempts, sample.first_token_seconds, sample.error, sample.error_class),
        )
        marks = ", ".join("?" * (len(values) + 1))
        with self._transaction():
            self._connection.execute(f"DELETE FROM samples WHERE {_KEY_COLUMNS} AND error IS NOT NULL", values[:6])
            cursor = self._connection.execute(
                f"INSERT INTO samples ({SAMPLE_COLUMNS}, seal) VALUES ({marks})", (*values, seal_of("sample", values))
            )
            assert cursor.lastrowid is not None
            if grade is not None:
                self._insert_grade(cursor.lastrowid, grading_id, grade)
            return cursor.lastrowid

    def add_grade(self, sample_id: int, grading_id: str, grade: Grade) -> None:
        """Commit a verdict on a stored sample."""
        with self._transaction():
            self._insert_grade(sample_id, grading_id, grade)

    def set_opinions(self, opinions: Sequence[tuple[str, int, str]]) -> None:
        """Commit second opinions on graded samples, as (opinion, sample id, grading id)."""
        with self._transaction():
            for opinion, *key in opinions:
                self._connection.execute("UPDATE grades SET opinion = ? WHERE sample_id = ? AND grading_id = ?", (opinion, *key))
                row = self._connection.execute(f"SELECT {GRADE_COLUMNS} FROM grades WHERE sample_id = ? AND grading_id = ?", key).fetchone()
                seal = seal_of("grade", row)
                self._connection.execute("UPDATE grades SET seal = ? WHERE sample_id = ? AND grading_id = ?", (seal, *key))

    def ungraded(self, run_id: str, evaluation: Evaluation) -> list[tuple[int, PlannedProblem, Sample]]:
        """Stored samples without a verdict under the evaluation's grading, as (sample id, problem, sample)."""
        problems = {problem.problem_id: problem for problem in evaluation.problems}
        columns = ", ".join(f"s.{field.name}" for field in dataclasses.fields(Sample))
        rows = self._execute(
            f"SELECT s.sample_id, {columns} {SAMPLES_OF_EVALUATION} AND g.verdict IS NULL ORDER BY s.sample_id",
            evaluation_parameters(run_id, evaluation),
        )
        samples = [(row[0], Sample(*row[1:])) for row in rows]
        return [(sample_id, problems[sample.problem_id], sample) for sample_id, sample in samples]

    def graded_samples(self, run_id: str, evaluation: Evaluation) -> list[GradedSample]:
        """Every stored and graded sample of an evaluation, by problem and index, whenever and in whatever order they came."""
        tables = {"gold": "p", "grading_id": "g", "verdict": "g", "extracted": "g", "opinion": "g"}
        columns = ", ".join(f"{tables.get(field.name, 's')}.{field.name}" for field in dataclasses.fields(GradedSample))
        rows = self._execute(
            f"SELECT {columns} {SAMPLES_OF_EVALUATION} AND g.verdict IS NOT NULL ORDER BY p.position, s.sample_index",
            evaluation_parameters(run_id, evaluation),
        )
        return [GradedSample(*row) for row in rows]

    def texts(self, sample: GradedSample) -> SampleTexts:
        """Thinking and final answer of a sample, and what its grader noted."""
        row = self._execute(
            "SELECT s.thinking, s.answer, g.details FROM samples s JOIN grades g ON g.sample_id = s.sample_id AND g.grading_id = ?"
            " WHERE s.sample_id = ?",
            (sample.grading_id, sample.sample_id),
        )[0]
        return SampleTexts(row[0], row[1], None if row[2] is None else parse_json(row[2], file=self.path))

    def forget_if_empty(self, run_id: str) -> None:
        """Remove a run that has no sample, as if it had never been started."""
        with self._transaction():
            if self._connection.execute("SELECT 1 FROM samples WHERE run_id = ? LIMIT 1", (run_id,)).fetchone() is None:
                for table in ("evaluations", "sessions", "runs"):
                    self._connection.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))

    def verify(self, run_id: str) -> int:
        """Compare every record of a run with its seal, and every evaluation with its identities; returns how many records there are.

        Raises:
            EvaluationError: a record was changed after it was written.
        """
        verify_identities(self.evaluations(run_id), self.path)
        return verify_seals(self._connection, self.path, run_id)

    def config(self, run_id: str) -> Any:
        """The configuration that a run was last started with."""
        return parse_json(self._execute("SELECT config FROM runs WHERE run_id = ?", (run_id,))[0][0], file=self.path)

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
            "SELECT task, title, mode, board_id, column_id, sampling_id, sampling, grader_id, second_grader, samples"
            " FROM evaluations WHERE run_id = ? ORDER BY rowid",
            (run_id,),
        )
        return [self._evaluation(row) for row in rows]

    def select(self, statement: str, parameters: Iterable[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows of a query of one's own (``queries``), each read when it is asked for."""
        with database_errors(self.path):
            yield from self._connection.execute(statement, tuple(parameters))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything that is read inside is of one moment, whatever a writer commits meanwhile."""
        if self._connection.in_transaction:
            yield
            return
        with database_errors(self.path):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    def _evaluation(self, row: tuple[Any, ...]) -> Evaluation:
        problems = self._execute(
            "SELECT problem_id, prompt_id, grading_id, gold, question, prompt, facts FROM problems WHERE column_id = ? ORDER BY position",
            (row[4],),
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
            second_grader=row[8],
            samples=row[9],
            problems=tuple(PlannedProblem(*texts, facts=parse_json(facts, file=self.path)) for *texts, facts in problems),
        )

    def _register_evaluation(self, run_id: str, evaluation: Evaluation) -> None:
        column = evaluation.column_id
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
                evaluation.second_grader,
                evaluation.samples,
            ),
        )
        self._connection.executemany(
            "INSERT INTO problems VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (column_id, position) DO UPDATE SET facts = excluded.facts",
            [
                (
                    column,
                    position,
                    item.problem_id,
                    item.prompt_id,
                    item.grading_id,
                    item.gold,
                    item.question,
                    item.prompt,
                    _dump(item.facts),
                )
                for position, item in enumerate(evaluation.problems)
            ],
        )

    def _insert_grade(self, sample_id: int, grading_id: str, grade: Grade) -> None:
        details = None if grade.details is None else _dump(grade.details)
        values = (sample_id, grading_id, grade.verdict, grade.extracted, grade.opinion, details)
        self._connection.execute(
            f"INSERT INTO grades ({GRADE_COLUMNS}, seal) VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, seal_of("grade", values))
        )

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


def evaluation_parameters(run_id: str, evaluation: Evaluation) -> tuple[Any, ...]:
    """The parameters of ``SAMPLES_OF_EVALUATION``."""
    return (evaluation.column_id, run_id, evaluation.mode, evaluation.sampling_id, evaluation.samples)


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=False, allow_nan=False)
