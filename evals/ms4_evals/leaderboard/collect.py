"""From stores to boards: which scores may stand side by side.

A board is one task with the same problems, prompts and grader. Its columns are (mode, sampling) identities; two scores share a column only
when everything that shapes them is equal, the model aside. Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_collect.py``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ms4_evals.outside_text import one_line
from ms4_evals.report_values import pairing_values, rounded, summary_values
from ms4_evals.statistics.pairs import Pairing, compare_pairs
from ms4_evals.statistics.scores import Difference, Score
from ms4_evals.statistics.speed import speed_values
from ms4_evals.statistics.stored import read_summary
from ms4_evals.statistics.summary import Summary, headline_score
from ms4_evals.store.records import Evaluation, RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.base import MODES, Mode
from ms4_train.errors import EvaluationError

CONFIDENCE = 0.95
RESAMPLES = 10_000

NO_SANDBOX = "no sandbox"
ERRORS_LEFT_OUT = "errors left out"
PARTIAL = "partial"
MARKS = (NO_SANDBOX, ERRORS_LEFT_OUT, PARTIAL)
"""What a score may be marked with, so that nobody takes it for a clean one."""


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
    """What a row holds in a column.

    Attributes:
        headline: the score that may be shown as the result; None while samples are missing, ungraded or errors that nobody allowed.
        values: the summary as JSON values.
        speed: as of ``speed_values``; it belongs to no identity.
        marks: of ``MARKS``.
        store: the file that holds the samples.
    """

    summary: Summary
    headline: Score | None
    values: Mapping[str, Any]
    speed: Mapping[str, float]
    marks: tuple[str, ...]
    store: Path


@dataclass(frozen=True)
class Row:
    """One model on a board.

    Attributes:
        label: unlike that of every other row of these boards, and the same on each board.
        key: the same, for addresses: the start of the run id, with a number where two stores hold the same run.
        cells: by column id.
        pairing: high - none of this run, where it has one column of each with a headline.
        versions: of the libraries that computed the answers, oldest first.
    """

    label: str
    key: str
    run: RunRecord
    cells: Mapping[str, Cell]
    pairing: Pairing | None
    versions: tuple[Mapping[str, str], ...] = ()

    @property
    def run_id(self) -> str:
        """Identity of model and seed."""
        return self.run.run_id

    @property
    def difference(self) -> Difference | None:
        """High - none, paired by problem."""
        return None if self.pairing is None else self.pairing.difference


@dataclass(frozen=True)
class Board:
    """One task with its rows, the best first."""

    board_id: str
    task: str
    title: str
    grader_id: str
    second_grader: str
    num_problems: int
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass
class _Entrant:
    """A run, with what one or several stores hold of it: cells by board id and column id."""

    run: RunRecord
    boards: dict[str, dict[str, Cell]]
    versions: list[dict[str, str]]
    label: str = ""
    key: str = ""
    columns: set[str] = field(default_factory=set)


def collect_boards(paths: Sequence[Path], *, allow_errors: bool = False) -> list[Board]:
    """All boards of the stores, in order of their first appearance.

    Args:
        paths: the stores. A run of which one store holds one task and another store another has one row for both.
        allow_errors: show scores of which errors are left out; they are marked.

    Raises:
        EvaluationError: a file that is not a store, records that were changed after they were written, or no evaluation at all.
    """
    entrants: list[_Entrant] = []
    for path in paths:
        with ResultStore.read(path) as store:
            for run in store.runs():
                store.verify(run.run_id)
                _enter(entrants, run, _cells_of_run(store, run, allow_errors), store.versions(run.run_id))
    board_ids = dict.fromkeys(board_id for entrant in entrants for board_id in entrant.boards)
    if not board_ids:
        raise EvaluationError("the stores hold no evaluation.", file=paths[0] if paths else None, fix="run `ms4 eval run` first.")
    _name_entrants(entrants)
    return [_make_board([entrant for entrant in entrants if board_id in entrant.boards], board_id, allow_errors) for board_id in board_ids]


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
                "high_minus_none": pairing_values(row.pairing) if row.pairing else None,
                "cells": {column_id: {**cell.values, "marks": list(cell.marks)} for column_id, cell in row.cells.items()},
            }
            for row in board.rows
        ],
    }


def _cells_of_run(store: ResultStore, run: RunRecord, allow_errors: bool) -> dict[str, dict[str, Cell]]:
    """The run's cells by board id and column id."""
    boards: dict[str, dict[str, Cell]] = {}
    for evaluation in store.evaluations(run.run_id):
        summary, samples = read_summary(store, run.run_id, evaluation, confidence=CONFIDENCE)
        headline = headline_score(summary, allow_errors=allow_errors)
        values = summary_values(summary, allow_errors=allow_errors)
        speed = rounded(speed_values(samples))
        cell = Cell(summary, headline, values, speed, marks_of(summary, has_score=headline is not None), store.path)
        boards.setdefault(evaluation.board_id, {})[evaluation.column_id] = cell
    return boards


def marks_of(summary: Summary, *, has_score: bool) -> tuple[str, ...]:
    """What the cell of a summary is marked with."""
    wanted = {
        NO_SANDBOX: NO_SANDBOX.replace(" ", "-") in summary.evaluation.grader_id,
        ERRORS_LEFT_OUT: has_score and summary.errors > 0,
        PARTIAL: summary.missing + summary.ungraded > 0,
    }
    return tuple(mark for mark in MARKS if wanted[mark])


def _enter(entrants: list[_Entrant], run: RunRecord, boards: dict[str, dict[str, Cell]], versions: list[dict[str, str]]) -> None:
    """Add what a store holds of a run: to the same run of another store, unless both hold a score of the same column."""
    columns = {column_id for cells in boards.values() for column_id in cells}
    for entrant in entrants:
        if entrant.run.run_id == run.run_id and entrant.run.label == run.label and not entrant.columns & columns:
            break
    else:
        entrant = _Entrant(run, {}, [])
        entrants.append(entrant)
    for board_id, cells in boards.items():
        entrant.boards.setdefault(board_id, {}).update(cells)
    entrant.versions += [version for version in versions if version not in entrant.versions]
    entrant.columns |= columns


def _name_entrants(entrants: Sequence[_Entrant]) -> None:
    """Labels, with the start of the run id where two runs share one, and a number where even that is equal; keys likewise."""
    plain = [one_line(entrant.run.label) for entrant in entrants]
    counts = Counter(plain)
    labels, keys = _Distinct(" ({})"), _Distinct("-{}")
    for label, entrant in zip(plain, entrants, strict=True):
        entrant.label = labels.name(label if counts[label] == 1 else f"{label} [{entrant.run.run_id[:6]}]")
        entrant.key = keys.name(entrant.run.run_id[:12])


class _Distinct:
    """Makes names distinct by numbering those that come again."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._given: set[str] = set()

    def name(self, wanted: str) -> str:
        given, number = wanted, 1
        while given in self._given:
            number += 1
            given = wanted + self._form.format(number)
        self._given.add(given)
        return given


def _make_board(entrants: Sequence[_Entrant], board_id: str, allow_errors: bool) -> Board:
    evaluations: dict[str, Evaluation] = {}
    for entrant in entrants:
        for column_id, cell in entrant.boards[board_id].items():
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
    rows = [_make_row(entrant, entrant.boards[board_id], allow_errors) for entrant in entrants]
    rows.sort(key=_best_score, reverse=True)
    first = ordered[0]
    names = (one_line(first.task), one_line(first.title), one_line(first.grader_id), one_line(first.second_grader))
    return Board(board_id, *names, len(first.problems), columns, tuple(rows))


def _make_row(entrant: _Entrant, cells: Mapping[str, Cell], allow_errors: bool) -> Row:
    pairing = _pairing(entrant.run, cells, allow_errors)
    return Row(entrant.label, entrant.key, entrant.run, cells, pairing, tuple(entrant.versions))


def _pairing(run: RunRecord, cells: Mapping[str, Cell], allow_errors: bool) -> Pairing | None:
    modes: dict[Mode, list[Summary]] = {mode: [] for mode in MODES}
    for cell in cells.values():
        modes[cell.summary.evaluation.mode].append(cell.summary)
    if any(len(summaries) != 1 for summaries in modes.values()):
        return None
    high, none = modes["high"][0], modes["none"][0]
    return compare_pairs(high, none, confidence=CONFIDENCE, resamples=RESAMPLES, seed=run.seed, allow_errors=allow_errors)


def _best_score(row: Row) -> float:
    """The row's best headline; rows without any come after all others."""
    return max((cell.headline.value for cell in row.cells.values() if cell.headline), default=-1.0)
