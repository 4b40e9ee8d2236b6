"""What the page knows at once (``site_values``), and what it loads when somebody opens a task (``board_details``), as JSON values.

Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_site_values.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from ms4_evals.graders.base import VERDICTS, Opinion
from ms4_evals.identity import content_hash
from ms4_evals.leaderboard.collect import NO_SANDBOX, Board, Cell, Row
from ms4_evals.leaderboard.published import PublishedScore, published_for
from ms4_evals.leaderboard.shards import shown_text
from ms4_evals.outside_text import one_line
from ms4_evals.report_values import rounded
from ms4_evals.store.records import PlannedProblem
from ms4_evals.token_counts import TOKENIZER_NAME

SITE_FORMAT = "ms4-site/1"
UNGRADED = "ungraded"
SITE_VERDICTS = (*VERDICTS, UNGRADED)
OPINIONS: tuple[str, ...] = get_args(Opinion)

_COLOURS = 7
_ADDRESS_CHARACTERS = 12


def site_values(boards: Sequence[Board], *, title: str, data: str) -> dict[str, Any]:
    """What stands in the page itself.

    Args:
        boards: all of them.
        title: of the leaderboard.
        data: the folder of the data files, beside the page.
    """
    models = _models(boards)
    published = list(dict.fromkeys(item for board in boards for item in published_for(board.task)))
    numbers = {item: index for index, item in enumerate(published)}
    return {
        "format": SITE_FORMAT,
        "title": title,
        "data": data,
        "tokenizer": TOKENIZER_NAME,
        "verdicts": list(SITE_VERDICTS),
        "opinions": list(OPINIONS),
        "samples": sum(cell.summary.graded + cell.summary.errors for board in boards for row in board.rows for cell in row.cells.values()),
        "models": [
            {"index": index, "key": row.key, "label": row.label, "color": index % _COLOURS} for index, row in enumerate(models.values())
        ],
        "boards": [_board(board, number, list(models), numbers) for number, board in enumerate(boards)],
        "published": [dataclasses.asdict(item) for item in published],
    }


def board_details(board: Board, problems: Mapping[str, Any], samples: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the page of a task shows beyond the overview.

    Args:
        board: whose.
        problems: where the texts of its problems lie.
        samples: where the samples of each cell lie, by ``cell_name``.
    """
    planned = board_problems(board)
    cells = {}
    for row_index, row in enumerate(board.rows):
        for column_index, column in enumerate(board.columns):
            if (cell := row.cells.get(column.column_id)) is not None:
                name = cell_name(row_index, column_index)
                cells[name] = _cell_details(cell, planned) | {"samples": samples[name]}
    return {
        "board_id": board.board_id,
        "data_id": content_hash(["data", [[problem.problem_id, problem.question, problem.gold] for problem in planned]]),
        "prompts_id": content_hash(["prompts", [problem.prompt_id for problem in planned]]),
        "columns": [column.column_id for column in board.columns],
        "models": [_model_details(row) for row in board.rows],
        "cells": cells,
        "problems": {
            "ids": [one_line(problem.problem_id) for problem in planned],
            "facts": [{one_line(name): _fact(value) for name, value in problem.facts.items()} for problem in planned],
            **problems,
        },
    }


def board_problems(board: Board) -> tuple[PlannedProblem, ...]:
    """The problems of a board, in its order; all its rows have the same."""
    return next(cell.summary.evaluation.problems for row in board.rows for cell in row.cells.values())


def cell_name(row_index: int, column_index: int) -> str:
    """How the page calls a cell of a board."""
    return f"{row_index}-{column_index}"


def clean_values(value: Any) -> Any:
    """The same JSON values with every text made fit to be shown."""
    if isinstance(value, str):
        return shown_text(value)
    if isinstance(value, Mapping):
        return {shown_text(str(key)): clean_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_values(item) for item in value]
    return value


def _models(boards: Sequence[Board]) -> dict[str, Row]:
    """One row per model, by key, in the order of the boards."""
    models: dict[str, Row] = {}
    for board in boards:
        for row in board.rows:
            models.setdefault(row.key, row)
    return models


def _board(board: Board, number: int, model_keys: Sequence[str], published: Mapping[PublishedScore, int]) -> dict[str, Any]:
    return {
        "id": board.board_id[:_ADDRESS_CHARACTERS],
        "file": f"b{number}",
        "task": board.task,
        "title": board.title,
        "grader": board.grader_id,
        "second": board.second_grader,
        "problems": board.num_problems,
        "marks": [NO_SANDBOX] if any(NO_SANDBOX in cell.marks for row in board.rows for cell in row.cells.values()) else [],
        "columns": [
            {
                "id": column.column_id[:_ADDRESS_CHARACTERS],
                "mode": column.mode,
                "heading": column.heading,
                "sampling": dict(column.sampling),
            }
            for column in board.columns
        ],
        "rows": [
            {
                "model": model_keys.index(row.key),
                "difference": _difference(row),
                "tests": _tests(row),
                "cells": [_cell(row.cells.get(column.column_id)) for column in board.columns],
            }
            for row in board.rows
        ],
        "published": [published[item] for item in published_for(board.task)],
    }


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    summary, headline = cell.summary, cell.headline
    return rounded(
        {
            "score": [headline.value, headline.low, headline.high] if headline else None,
            "marks": list(cell.marks),
            "graded": summary.graded,
            "planned": summary.evaluation.planned,
            "errors": summary.errors,
            "lengths": {
                name: [groups["all"].mean, groups["all"].mean_low, groups["all"].mean_high]
                for name, groups in summary.lengths.items()
                if groups["all"] is not None and name.endswith(("_chars", "_tokens")) and not name.startswith(("usage", "prompt"))
            },
        }
    )


def _difference(row: Row) -> list[float] | None:
    difference = row.difference
    return None if difference is None else rounded([difference.value, difference.low, difference.high])


def _tests(row: Row) -> list[float | int | None] | None:
    """Problems that only high, and only none, solved with their first sample; both exact p-values."""
    if row.pairing is None:
        return None
    mcnemar = row.pairing.mcnemar
    first: list[float | int | None] = [None] * 3 if mcnemar is None else [mcnemar.first_only, mcnemar.second_only, mcnemar.p_value]
    return rounded([*first, row.pairing.sign_flip_p])


def _cell_details(cell: Cell, planned: Sequence[PlannedProblem]) -> dict[str, Any]:
    means = cell.summary.problem_means
    values = {name: value for name, value in cell.values.items() if name not in ("disagreements", "column_id", "sampling", "mode")}
    values = clean_values(values)
    values["speed"] = dict(cell.speed)
    values["problem_means"] = rounded([means.get(problem.problem_id) for problem in planned])
    return values


def _model_details(row: Row) -> dict[str, Any]:
    return {
        "run_id": row.run_id,
        "seed": row.run.seed,
        "model": clean_values(row.run.model),
        "versions": clean_values(list(row.versions)),
    }


def _fact(value: str | int) -> str | int:
    return one_line(value) if isinstance(value, str) else value
