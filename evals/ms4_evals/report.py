"""The report of one run: a function of its stored samples, byte for byte.

It holds no time, no speed, no path and no order of arrival, so a run that was killed and went on gives the same bytes as one that was not.
Exercise it: ``pytest tests/evals/ms4_evals/test_report.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ms4_evals.report_text import to_markdown
from ms4_evals.report_values import pairing_values, rounded, summary_values
from ms4_evals.statistics.pairs import compare_pairs
from ms4_evals.statistics.stored import read_summary
from ms4_evals.statistics.summary import Summary
from ms4_evals.store.records import Evaluation, RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.token_counts import TOKENIZER_NAME
from ms4_train.storage import atomic_write_bytes, atomic_write_text, storage_errors

__all__ = ["REPORT_FORMAT", "build_report", "file_name_part", "rounded", "summary_values", "write_report"]

REPORT_FORMAT = "ms4-report/2"


def build_report(
    store: ResultStore,
    run: RunRecord,
    evaluations: Sequence[Evaluation],
    *,
    confidence: float,
    resamples: int,
    allow_errors: bool = False,
) -> dict[str, Any]:
    """The report of a run as JSON values.

    Args:
        store: holds its samples.
        run: whose report.
        evaluations: what the report covers.
        confidence: of every interval.
        resamples: of the bootstrap.
        allow_errors: give scores although samples are missing, ungraded or errors; the report says how many were left out.
    """
    with store.snapshot():
        summaries = [read_summary(store, run.run_id, evaluation, confidence=confidence)[0] for evaluation in evaluations]
        boards: dict[str, list[Summary]] = {}
        for summary in summaries:
            boards.setdefault(summary.evaluation.board_id, []).append(summary)
        return {
            "format": REPORT_FORMAT,
            "label": run.label,
            "run_id": run.run_id,
            "seed": run.seed,
            "model": dict(run.model),
            "versions": store.versions(run.run_id),
            "token_counter": TOKENIZER_NAME,
            "confidence": confidence,
            "bootstrap_samples": resamples,
            "complete": all(summary.is_complete for summary in summaries),
            "allow_errors": allow_errors,
            "tasks": [
                task_values(board, store, seed=run.seed, confidence=confidence, resamples=resamples, allow_errors=allow_errors)
                for board in boards.values()
            ],
        }


def write_report(report: dict[str, Any], folder: Path, *, plots: Mapping[str, bytes] | None = None) -> tuple[Path, Path]:
    """Write a report as JSON and as Markdown; returns the two paths, which carry the run's label and the start of its id.

    Args:
        report: from ``build_report``.
        folder: made where it is not there.
        plots: PNG images by name (``plots.report_plots``), written beside the two and shown in the Markdown.

    Raises:
        StorageError: a file cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stem = f"{file_name_part(report['label'])}-{report['run_id'][:8]}"
    json_path, text_path = folder / f"{stem}.json", folder / f"{stem}.md"
    images = {name: f"{stem}-{name}.png" for name in plots or {}}
    for name, data in (plots or {}).items():
        atomic_write_bytes(folder / images[name], data)
    atomic_write_text(json_path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    atomic_write_text(text_path, to_markdown(report, images=images))
    return json_path, text_path


def file_name_part(label: str) -> str:
    """A label as part of a file name: letters, digits, dots, underscores and hyphens, at most 60 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:60] or "run"


def task_values(
    board: Sequence[Summary], store: ResultStore | None, *, seed: int, confidence: float, resamples: int, allow_errors: bool
) -> dict[str, Any]:
    """One board of one run as JSON values: its modes, and high - none where it has one column of each.

    Args:
        board: summaries of one board.
        store: where the ends of disputed answers are read from; None leaves them out.
        seed, resamples: of the bootstrap.
        confidence: of the intervals of the difference.
        allow_errors: as in ``build_report``.
    """
    evaluation = board[0].evaluation
    by_mode = {mode: [summary for summary in board if summary.evaluation.mode == mode] for mode in ("high", "none")}
    pairing = None
    # Two columns of one mode (the sampling was changed) leave open which of them would be meant.
    if all(len(summaries) == 1 for summaries in by_mode.values()):
        pairing = compare_pairs(
            by_mode["high"][0],
            by_mode["none"][0],
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            allow_errors=allow_errors,
        )
    return {
        "task": evaluation.task,
        "title": evaluation.title,
        "board_id": evaluation.board_id,
        "grader": evaluation.grader_id,
        "problems": len(evaluation.problems),
        "high_minus_none": pairing_values(pairing) if pairing else None,
        "modes": [summary_values(summary, store, allow_errors=allow_errors) for summary in board],
    }
