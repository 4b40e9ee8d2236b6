"""The report of one run: a function of its stored samples, byte for byte.

It holds no time, no path and no order of arrival, so a run that was killed and went on gives the same bytes as one that was not.
Exercise it: ``pytest tests/evals/ms4_evals/test_report.py``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ms4_evals.report_text import to_markdown
from ms4_evals.statistics.summary import Summary, compare_modes, summarise
from ms4_evals.store.records import Evaluation, GradedSample, RunRecord
from ms4_evals.store.results import ResultStore
from ms4_train.storage import atomic_write_text, storage_errors

REPORT_FORMAT = "ms4-report/1"
_DIGITS = 6
_LISTED_DISAGREEMENTS = 50
_EXCERPT_CHARACTERS = 200


def build_report(
    store: ResultStore, run: RunRecord, evaluations: Sequence[Evaluation], *, confidence: float, resamples: int
) -> dict[str, Any]:
    """The report of a run as JSON values.

    Args:
        store: holds its samples.
        run: whose report.
        evaluations: what the report covers.
        confidence: of every interval.
        resamples: of the bootstrap.
    """
    summaries = [summarise(evaluation, store.graded_samples(run.run_id, evaluation), confidence=confidence) for evaluation in evaluations]
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
        "confidence": confidence,
        "bootstrap_samples": resamples,
        "complete": all(summary.is_complete for summary in summaries),
        "tasks": [_task_values(board, run.seed, confidence, resamples) for board in boards.values()],
    }


def write_report(report: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write a report as JSON and as Markdown; returns the two paths, which carry the run's label and the start of its id.

    Raises:
        StorageError: a file cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stem = f"{file_name_part(report['label'])}-{report['run_id'][:8]}"
    json_path, text_path = folder / f"{stem}.json", folder / f"{stem}.md"
    atomic_write_text(json_path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    atomic_write_text(text_path, to_markdown(report))
    return json_path, text_path


def file_name_part(label: str) -> str:
    """A label as part of a file name: letters, digits, dots, underscores and hyphens, at most 60 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:60] or "run"


def summary_values(summary: Summary) -> dict[str, Any]:
    """A summary as JSON values, numbers rounded to six digits."""
    evaluation = summary.evaluation
    return rounded(
        {
            "mode": evaluation.mode,
            "column_id": evaluation.column_id,
            "sampling": dict(evaluation.sampling),
            "samples_per_problem": evaluation.samples,
            "planned": evaluation.planned,
            "graded": summary.graded,
            "missing": summary.missing,
            "complete": summary.is_complete,
            "score": dataclasses.asdict(summary.score) if summary.score else None,
            "verdicts": dict(summary.verdicts),
            "at_token_limit": summary.at_limit,
            "open_thinking": summary.open_thinking,
            "pass_at": {str(k): value for k, value in summary.pass_at.items()},
            "cons_at": {str(k): value for k, value in summary.cons_at.items()},
            "lengths": {
                name: {group: dataclasses.asdict(value) if value else None for group, value in groups.items()}
                for name, groups in summary.lengths.items()
            },
            "second_opinion": dict(summary.opinions),
            "disagreements": [_disagreement(sample) for sample in summary.disagreements[:_LISTED_DISAGREEMENTS]],
        }
    )


def rounded(value: Any) -> Any:
    """The same JSON values with every float rounded to six digits."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def _task_values(board: Sequence[Summary], seed: int, confidence: float, resamples: int) -> dict[str, Any]:
    evaluation = board[0].evaluation
    modes = {summary.evaluation.mode: summary for summary in board}
    difference = None
    if "high" in modes and "none" in modes:
        difference = compare_modes(modes["high"], modes["none"], confidence=confidence, resamples=resamples, seed=seed)
    return {
        "task": evaluation.task,
        "title": evaluation.title,
        "board_id": evaluation.board_id,
        "grader": evaluation.grader_id,
        "problems": len(evaluation.problems),
        "high_minus_none": rounded(dataclasses.asdict(difference)) if difference else None,
        "modes": [summary_values(summary) for summary in board],
    }


def _disagreement(sample: GradedSample) -> dict[str, Any]:
    return {
        "problem": sample.problem_id,
        "sample": sample.sample_index,
        "gold": sample.gold,
        "extracted": sample.extracted,
        "verdict": sample.verdict,
        "second_opinion": sample.opinion,
        "end_of_answer": sample.answer[-_EXCERPT_CHARACTERS:],
    }
