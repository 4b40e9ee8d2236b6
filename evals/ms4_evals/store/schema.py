"""The tables of a results store, and opening a file that is one.

``samples`` holds what models said and ``grades`` what graders made of it, so that a corrected grader or gold answer grades again without
drawing again. Both carry a seal, a hash of their own row, so that an edited record is noticed (``seals``).
Exercise it: ``pytest tests/evals/ms4_evals/store/test_schema.py``.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ms4_train.errors import EvaluationError, StorageError
from ms4_train.storage import require_free_bytes, storage_errors

APPLICATION_ID = 0x4D533445
SCHEMA_VERSION = 2
_INDEX_BYTES = 1 << 16

# The long texts are the last columns of a sample, so that counting and summing reads past none of them.
_TABLES = """
CREATE TABLE runs (run_id TEXT PRIMARY KEY, label TEXT NOT NULL, model TEXT NOT NULL, seed INTEGER NOT NULL, config TEXT NOT NULL);
CREATE TABLE sessions (run_id TEXT NOT NULL REFERENCES runs, versions TEXT NOT NULL, started TEXT NOT NULL,
    first_sample INTEGER NOT NULL);
CREATE TABLE evaluations (
    run_id TEXT NOT NULL REFERENCES runs, column_id TEXT NOT NULL, task TEXT NOT NULL, title TEXT NOT NULL, mode TEXT NOT NULL,
    board_id TEXT NOT NULL, sampling_id TEXT NOT NULL, sampling TEXT NOT NULL, grader_id TEXT NOT NULL,
    second_grader TEXT NOT NULL, samples INTEGER NOT NULL,
    PRIMARY KEY (run_id, column_id));
CREATE TABLE problems (
    column_id TEXT NOT NULL, position INTEGER NOT NULL, problem_id TEXT NOT NULL, prompt_id TEXT NOT NULL, grading_id TEXT NOT NULL,
    gold TEXT NOT NULL, question TEXT NOT NULL, prompt TEXT NOT NULL, facts TEXT NOT NULL,
    PRIMARY KEY (column_id, position)) WITHOUT ROWID;
CREATE TABLE samples (
    sample_id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs, problem_id TEXT NOT NULL, prompt_id TEXT NOT NULL,
    mode TEXT NOT NULL, sampling_id TEXT NOT NULL, sample_index INTEGER NOT NULL, seed INTEGER NOT NULL, prompt_hash TEXT NOT NULL,
    thinking_is_open INTEGER NOT NULL,
    thinking_chars INTEGER NOT NULL, answer_chars INTEGER NOT NULL, thinking_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL,
    finish_reason TEXT NOT NULL, seconds REAL NOT NULL, prompt_tokens INTEGER, usage_tokens INTEGER, usage_thinking_tokens INTEGER,
    cost REAL, endpoint TEXT NOT NULL, attempts INTEGER NOT NULL, first_token_seconds REAL, error TEXT, error_class TEXT,
    seal TEXT NOT NULL, thinking TEXT NOT NULL, answer TEXT NOT NULL,
    UNIQUE (run_id, problem_id, prompt_id, mode, sampling_id, sample_index));
CREATE TABLE grades (
    sample_id INTEGER NOT NULL REFERENCES samples ON DELETE CASCADE, grading_id TEXT NOT NULL, verdict TEXT NOT NULL, extracted TEXT,
    opinion TEXT, details TEXT, seal TEXT NOT NULL,
    PRIMARY KEY (sample_id, grading_id)) WITHOUT ROWID;
"""


def connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    """Open a store; a writable one is made when it is not there.

    Every commit reaches the disk before it returns (write-ahead log, ``synchronous=FULL``).

    Raises:
        EvaluationError: no such file, or a file that is not a results store of this version.
        StorageError: the file cannot be written.
    """
    if not writable and not path.is_file():
        raise EvaluationError("there is no such store.", file=path, fix="name the SQLite file of an `ms4 eval run`.")
    with database_errors(path):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            _prepare(connection, path, writable)
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite raises inside the block into errors that name the store.

    Raises:
        StorageError: the disk is full, or the file cannot be opened, locked or written.
        EvaluationError: the file is damaged or no database.
    """
    try:
        with storage_errors(path):
            yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
            # A disk without room for the index of the log, which is laid in shared memory, is an "I/O error" to SQLite.
            require_free_bytes(path, _INDEX_BYTES)
        raise StorageError(f"the store cannot be used ({error}).", file=path, fix="check the folder and its permissions.") from error
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise not_a_store(path) from error
        raise EvaluationError(f"the store is damaged ({error}).", file=path, fix="restore the file, or name a new store.") from error


def _prepare(connection: sqlite3.Connection, path: Path, writable: bool) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.execute("PRAGMA foreign_keys = ON")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if not is_empty or not writable:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise not_a_store(path)
        if version != SCHEMA_VERSION:
            raise EvaluationError(
                f"the store has layout {version}; this program reads layout {SCHEMA_VERSION}.", file=path, fix="name a new store."
            )
    if not writable:
        connection.execute("PRAGMA query_only = ON")
        return
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if is_empty:
        connection.executescript(
            f"BEGIN; {_TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )


def not_a_store(path: Path) -> EvaluationError:
    """The error for a path that holds something else."""
    return EvaluationError("this file is not a results store.", file=path, fix="name the SQLite file of an `ms4 eval run`.")
