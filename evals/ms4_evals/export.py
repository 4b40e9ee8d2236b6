"""Every sample of a store as JSON lines or Parquet, for analyses that this library does not make.

One row per sample and grading: a sample that two versions of a grader judged stands there twice, with the same ``sample_id``. Both formats
have the columns of ``SCHEMA``. What is nested (facts of the problem, details of the grader, sampling, the model's identity) is an object
in JSON lines and JSON as text in Parquet, because its keys differ from task to task. Samples that wait for a verdict have none (null).

Rows are read and written some megabytes at a time, whatever the size of the store. Speeds and attempts are in; no prompt is, because stores
hold none (``prompt_hash`` and ``question`` are). Exercise it: ``pytest tests/evals/ms4_evals/test_export.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from ms4_evals.store.queries import EXPORT_COLUMNS, sample_rows
from ms4_evals.store.results import ResultStore
from ms4_evals.token_counts import TOKENIZER_NAME
from ms4_train.errors import EvaluationError, MissingDependencyError
from ms4_train.storage import fsync_file, fsync_folder, storage_errors
from ms4_train.untrusted import parse_json

ExportFormat = Literal["jsonl", "parquet"]
EXPORT_FORMAT = "ms4-samples/1"

SCHEMA: Mapping[str, str] = {
    "run_id": "text: identity of model and seed",
    "label": "text: what the run is called",
    "task": "text: e.g. aime_2025",
    "title": "text: the task for people, with its size",
    "mode": "text: none or high",
    "board_id": "text: identity of data, prompts and grader",
    "column_id": "text: identity of board, mode and sampling; scores of different columns must not be compared",
    "grader": "text: who gave the verdict",
    "second_grader": "text: who gave the opinion; empty for nobody",
    "sampling": "nested: temperature, top_p, max_tokens",
    "sample_id": "integer: number of the sample in its store",
    "problem_id": "text: e.g. aime_2025/07",
    "sample_index": "integer: which sample of the problem, from 0",
    "seed": "integer",
    "prompt_hash": "text: of what the model read",
    "gold": "text: the right answer, or a digest of the tests",
    "question": "text: the problem for people, without instruction and documents",
    "facts": "nested: what the problem is (difficulty, platform, month, errata, category ...)",
    "thinking": "text",
    "answer": "text: the final answer, which alone is graded",
    "thinking_is_open": "boolean: the thinking never closed",
    "thinking_chars": "integer",
    "answer_chars": "integer",
    "thinking_tokens": "integer: under the common tokenizer",
    "answer_tokens": "integer: under the common tokenizer",
    "prompt_tokens": "integer or null: as the server or engine counts",
    "usage_tokens": "integer or null: generated, as the server or engine counts",
    "usage_thinking_tokens": "integer or null: of those, thinking",
    "cost": "number or null",
    "seconds": "number: from sending to the last token",
    "first_token_seconds": "number or null",
    "endpoint": "text: which server answered; empty for the engine",
    "attempts": "integer: requests that it took",
    "finish_reason": "text: stop or length; empty after an error",
    "error": "text or null",
    "error_class": "text or null",
    "verdict": "text or null: correct, wrong, no-answer, truncated, error; null before grading",
    "extracted": "text or null: what the grader read",
    "opinion": "text or null: the second grader's: correct, wrong, failed",
    "details": "nested or null: what the grader noted",
}
"""Every column with its type: text, integer, number, boolean, nested; in order."""

_NESTED = frozenset(name for name, words in SCHEMA.items() if words.startswith("nested"))
_GROUP_ROWS = 2_000
_GROUP_CHARACTERS = 8_000_000
# Line ends to some readers, though not to JSON; escaped, a line is a line to everybody.
_SEPARATORS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def export_samples(store: ResultStore, path: Path, file_format: ExportFormat, *, run_id: str | None = None) -> int:
    """Write every sample of a store, or of one run, into a file that is there whole or not at all; returns the number of rows.

    Args:
        store: may be written to meanwhile; the export is of one moment.
        path: the file; one that is there is replaced.
        file_format: ``jsonl`` or ``parquet``.
        run_id: only this run; default: all.

    Raises:
        EvaluationError: there is nothing to export, or a record of the store is damaged.
        MissingDependencyError: Parquet without pyarrow.
        StorageError: the file cannot be written.
    """
    # The rows are closed before the store is, also where writing fails.
    with store.snapshot(), contextlib.closing(iter_samples(store, run_id=run_id)) as rows:
        first = next(rows, None)
        if first is None:
            raise EvaluationError("there are no samples to export.", file=store.path, fix="see `ms4 eval status STORE`.")
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write = _write_lines if file_format == "jsonl" else _write_parquet
        with _replacing(path) as file:
            return write(_chained(first, rows), file, store.path)


def iter_samples(store: ResultStore, *, run_id: str | None = None) -> Generator[dict[str, Any]]:
    """Rows with the columns of ``SCHEMA``, nested ones as JSON text: by run, evaluation, problem and index; one in memory at a time."""
    for run in store.runs():
        if run_id is not None and run.run_id != run_id:
            continue
        for evaluation in store.evaluations(run.run_id):
            common = {
                "run_id": run.run_id,
                "label": run.label,
                "task": evaluation.task,
                "title": evaluation.title,
                "mode": evaluation.mode,
                "board_id": evaluation.board_id,
                "column_id": evaluation.column_id,
                "grader": evaluation.grader_id,
                "second_grader": evaluation.second_grader,
                "sampling": json.dumps(dict(evaluation.sampling)),
            }
            for row in sample_rows(store, run.run_id, evaluation):
                values = common | dict(zip(EXPORT_COLUMNS, row, strict=True))
                values["thinking_is_open"] = bool(values["thinking_is_open"])
                yield values


def _chained(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _write_lines(rows: Iterator[dict[str, Any]], file: IO[bytes], source: Path) -> int:
    count = 0
    for row in rows:
        values = {name: parse_json(row[name], file=source) if name in _NESTED and row[name] is not None else row[name] for name in SCHEMA}
        line = json.dumps(values, ensure_ascii=False, allow_nan=False).translate(_SEPARATORS)
        file.write(line.encode("utf-8") + b"\n")
        count += 1
    return count


def _write_parquet(rows: Iterator[dict[str, Any]], file: IO[bytes], source: Path) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(
            "pyarrow is not installed.", key="--format parquet", fix="pip install pyarrow, or use jsonl."
        ) from error
    types = {"text": pa.string(), "nested": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    fields = [pa.field(name, types[words.split(":")[0].split(" ")[0]], metadata={"meaning": words}) for name, words in SCHEMA.items()]
    schema = pa.schema(fields, metadata={"format": EXPORT_FORMAT, "token_counter": TOKENIZER_NAME})
    count = characters = 0
    group: dict[str, list[Any]] = {name: [] for name in SCHEMA}
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pydict(group, schema=schema))
            for values in group.values():
                values.clear()

        for row in rows:
            for name, values in group.items():
                values.append(row[name])
            count += 1
            characters += sum(len(row[name] or "") for name in ("thinking", "answer", "extracted", "details", "question"))
            if len(group["run_id"]) >= _GROUP_ROWS or characters >= _GROUP_CHARACTERS:
                flush()
                characters = 0
        if group["run_id"]:
            flush()
    return count


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of ``path`` once the block has ended well, and is removed otherwise."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise EvaluationError("is not a regular file and is not replaced.", file=path, key="--out", fix="name a file.")
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with storage_errors(path):
        try:
            with temporary.open("xb") as file:
                yield file
            fsync_file(temporary)
            temporary.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
