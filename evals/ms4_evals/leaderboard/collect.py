"""From stores to boards: which scores may stand side by side.

A board is one task with the same problems, prompts and grader. Its columns are (mode, sampling) identities; two scores share a column only
when everything that shapes them is equal, the model aside. Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_collect.py``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms4_evals.graders.integer import VERDICTS
from ms4_evals.outside_text import one_line
from ms4_evals.report import rounded, summary_values
from ms4_evals.statistics.scores import Difference
from ms4_evals.statistics.summary import Summary, compare_modes, disagrees, summarise
from ms4_evals.store.records import Evaluation, GradedSample, RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.base import MODES, Mode
from ms4_train.errors import EvaluationError

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Column:
    """One mode under one sampling.

    Attributes:
        heading: the mode, with the start of the identity when a board has several columns of that mode.
    """

    column_id: str
    mode: Mode
    heading: str
    sampling: Mapping[str, float | int]


@dataclass(frozen=True)
class Cell:
    """What a row holds in a column: the summary, and a few samples to look at."""

    summary: Summary
    examples: tuple[GradedSample, ...]


@dataclass(frozen=True)
class Row:
    """One run of one store on a board.

    Attributes:
        cells: by column id.
        difference: high - none of this run, where it has one complete column of each.
    """

    label: str
    run_id: str
    cells: Mapping[str, Cell]
    difference: Difference | None


@dataclass(frozen=True)
class Board:
    """One task with its rows, the best first."""

    board_id: str
    task: str
    title: str
    grader_id: str
    num_problems: int
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def collect_boards(paths: Sequence[Path]) -> list[Board]:
    """All boards of the stores, in order of their first appearance.

    Raises:
        EvaluationError: a file that is not a store, or stores without any evaluation.
    """
    entries: dict[str, list[tuple[RunRecord, dict[str, Cell]]]] = {}
    for path in paths:
        with ResultStore.read(path) as store:
            for run in store.runs():
                for board_id, cells in _cells_of_run(store, run).items():
                    entries.setdefault(board_id, []).append((run, cells))
    if not entries:
        raise EvaluationError("the stores hold no evaluation.", file=paths[0] if paths else None, fix="run `ms4 eval` first.")
    return [_make_board(rows) for rows in entries.values()]


def board_values(board: Board) -> dict[str, Any]:
    """A board as JSON values."""
    return {
        "board_id": board.board_id,
        "task": board.task,
        "title": board.title,
        "grader": board.grader_id,
        "problems": board.num_problems,
        "columns": [dataclasses.asdict(column) | {"sampling": dict(column.sampling)} for column in board.columns],
        "rows": [
            {
                "label": row.label,
                "run_id": row.run_id,
                "high_minus_none": rounded(dataclasses.asdict(row.difference)) if row.difference else None,
                "cells": {column_id: summary_values(cell.summary) for column_id, cell in row.cells.items()},
            }
            for row in board.rows
        ],
    }


def pick_examples(samples: Sequence[GradedSample]) -> tuple[GradedSample, ...]:
    """A few telling samples: the first of each verdict, and the first that the second opinion disagrees on."""
    chosen = {
        sample.sample_id: sample
        for verdict in VERDICTS
        if (sample := next((item for item in samples if item.verdict == verdict), None)) is not None
    }
    disputed = (item for item in samples if disagrees(item))
    if (sample := next(disputed, None)) is not None:
        chosen[sample.sample_id] = sample
    return tuple(chosen.values())


def _cells_of_run(store: ResultStore, run: RunRecord) -> dict[str, dict[str, Cell]]:
    """The run's cells by board id and column id."""
    boards: dict[str, dict[str, Cell]] = {}
    for evaluation in store.evaluations(run.run_id):
        samples = store.graded_samples(run.run_id, evaluation)
        summary = summarise(evaluation, samples, confidence=CONFIDENCE)
        boards.setdefault(evaluation.board_id, {})[evaluation.column_id] = Cell(summary, pick_examples(samples))
    return boards


def _make_board(entries: Sequence[tuple[RunRecord, dict[str, Cell]]]) -> Board:
    evaluations: dict[str, Evaluation] = {}
    for _, cells in entries:
        for column_id, cell in cells.items():
            evaluations.setdefault(column_id, cell.summary.evaluation)
    per_mode = Counter(evaluation.mode for evaluation in evaluations.values())
    ordered = sorted(evaluations.values(), key=lambda evaluation: MODES.index(evaluation.mode))
    columns = tuple(
        Column(
            column_id=evaluation.column_id,
            mode=evaluation.mode,
            heading=evaluation.mode if per_mode[evaluation.mode] == 1 else f"{evaluation.mode} {evaluation.column_id[:6]}",
            sampling=evaluation.sampling,
        )
        for evaluation in ordered
    )
    labels = _distinct_labels([run for run, _ in entries])
    rows = [Row(label, run.run_id, cells, _difference(run, cells)) for label, (run, cells) in zip(labels, entries, strict=True)]
    rows.sort(key=_best_score, reverse=True)
    first = ordered[0]
    names = (one_line(first.task), one_line(first.title), one_line(first.grader_id))
    return Board(first.board_id, *names, len(first.problems), columns, tuple(rows))


def _difference(run: RunRecord, cells: Mapping[str, Cell]) -> Difference | None:
    modes: dict[Mode, list[Summary]] = {mode: [] for mode in MODES}
    for cell in cells.values():
        modes[cell.summary.evaluation.mode].append(cell.summary)
    if any(len(summaries) != 1 for summaries in modes.values()):
        return None
    return compare_modes(modes["high"][0], modes["none"][0], confidence=CONFIDENCE, resamples=RESAMPLES, seed=run.seed)


def _best_score(row: Row) -> float:
    return max((cell.summary.score.value for cell in row.cells.values() if cell.summary.score), default=-1.0)


def _distinct_labels(runs: Sequence[RunRecord]) -> list[str]:
    """Labels, with the start of the run id where two runs share one, and a number where even that is equal."""
    plain = [one_line(run.label) for run in runs]
    counts = Counter(plain)
    labels = [label if counts[label] == 1 else f"{label} [{run.run_id[:6]}]" for label, run in zip(plain, runs, strict=True)]
    seen: Counter[str] = Counter()
    distinct: list[str] = []
    for label in labels:
        seen[label] += 1
        distinct.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return distinct
