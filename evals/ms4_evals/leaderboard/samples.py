"""Writes what the page shows of problems and samples: their texts, and light tables that say where the texts lie.

Samples stream from the store; of their texts, one file's worth is held. Exercise it:
``pytest tests/evals/ms4_evals/leaderboard/test_samples.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from ms4_evals.leaderboard.collect import Cell
from ms4_evals.leaderboard.shards import ShardWriter, TextShards, script_json, shown_text
from ms4_evals.leaderboard.site_values import OPINIONS, SITE_VERDICTS, UNGRADED, clean_values
from ms4_evals.outside_text import one_line
from ms4_evals.store.queries import EXPORT_COLUMNS, sample_rows
from ms4_evals.store.records import PlannedProblem
from ms4_evals.store.results import ResultStore
from ms4_train.errors import UntrustedInputError
from ms4_train.untrusted import parse_json

ROWS_PER_FILE = 5_000
"""Of the tables of samples; such a file has some 200 kB."""

FINISHES = ("", "stop", "length")

_READ_CHARACTERS = 24
_FACTS = (
    *("thinking_is_open", "prompt_tokens", "usage_tokens", "seconds", "first_token_seconds", "cost", "endpoint", "attempts"),
    *("usage_thinking_tokens", "error_class", "seed", "prompt_hash"),
)


def write_problems(writer: ShardWriter, stem: str, problems: Sequence[PlannedProblem]) -> dict[str, Any]:
    """Write questions and right answers; returns where each lies."""
    shards = TextShards(writer, stem)
    places = [shards.add({"question": problem.question, "gold": problem.gold, "prompt": problem.prompt}) for problem in problems]
    shards.close()
    return {"stem": stem, "first": [first for first, _ in places], "last": [last for _, last in places]}


def write_samples(writer: ShardWriter, stem: str, run_id: str, cell: Cell) -> dict[str, Any]:
    """Write all samples of a cell, as the store has them at this moment; returns where they lie.

    Args:
        writer: takes the files.
        stem: begins their names.
        run_id: whose samples.
        cell: from ``collect_boards``.

    Raises:
        EvaluationError: the store cannot be read.
        StorageError: a file cannot be written.
    """
    evaluation = cell.summary.evaluation
    positions = {problem.problem_id: position for position, problem in enumerate(evaluation.problems)}
    shards = TextShards(writer, f"{stem}t")
    chunks: list[str] = []
    table = _Table()

    def flush() -> None:
        name = f"{stem}s{len(chunks)}"
        writer.write(name, table.columns)
        chunks.append(name)
        table.clear()

    with ResultStore.read(cell.store) as store, store.snapshot():
        for values in sample_rows(store, run_id, evaluation):
            row = dict(zip(EXPORT_COLUMNS, values, strict=True))
            table.add(row, positions[row["problem_id"]], shards.add(_texts(row)))
            if table.rows == ROWS_PER_FILE:
                flush()
    shards.close()
    if table.rows or not chunks:
        flush()
    return {"stem": f"{stem}t", "chunks": chunks}


class _Table:
    """Samples as columns of numbers: problem, index, verdict, opinion, lengths, end, place of the texts, what was read."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {}
        self.clear()

    def clear(self) -> None:
        self.columns = {name: [] for name in ("p", "i", "v", "o", "tc", "ac", "tt", "at", "f", "a", "b", "e")}

    @property
    def rows(self) -> int:
        return len(self.columns["p"])

    def add(self, row: dict[str, Any], position: int, place: tuple[int, int]) -> None:
        verdict, opinion, extracted = row["verdict"] or UNGRADED, row["opinion"], row["extracted"]
        values = (
            *(position, row["sample_index"], SITE_VERDICTS.index(verdict), -1 if opinion is None else OPINIONS.index(opinion)),
            *(row["thinking_chars"], row["answer_chars"], row["thinking_tokens"], row["answer_tokens"]),
            *(FINISHES.index(row["finish_reason"]) if row["finish_reason"] in FINISHES else 0, *place),
            one_line(extracted[: 4 * _READ_CHARACTERS])[:_READ_CHARACTERS] if extracted else "",
        )
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)


def _texts(row: dict[str, Any]) -> dict[str, str]:
    """The texts of a sample by field; its thinking and answer are always there, so that no sample lies nowhere."""
    texts = {"thinking": row["thinking"], "answer": row["answer"]}
    if row["extracted"] is not None:
        texts["extracted"] = row["extracted"]
    if row["error"] is not None:
        texts["error"] = row["error"]
    if row["details"] is not None:
        texts["details"] = json.dumps(clean_values(_details(row["details"])), ensure_ascii=False)
    texts["facts"] = script_json({name: _fact(row[name]) for name in _FACTS if row[name] not in (None, "", 0)})
    return texts


def _fact(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    if isinstance(value, int) and value >= 1 << 53:
        return str(value)  # more than the numbers of a page can hold
    return shown_text(value) if isinstance(value, str) else value


def _details(text: str) -> dict[str, Any]:
    """What a grader noted; a record that somebody edited may hold anything."""
    try:
        value = parse_json(text)
    except UntrustedInputError:
        return {"note": text}
    return value if isinstance(value, dict) else {"note": value}
