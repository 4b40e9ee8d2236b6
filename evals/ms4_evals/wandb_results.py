"""An evaluation in Weights & Biases: summary values, tables of scores, problems and samples, and the files as an artifact.

Offline mode needs neither account nor network. Exercise it: ``pytest tests/evals/ms4_evals/test_wandb_results.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ms4_evals.outside_text import printable
from ms4_evals.store.records import Evaluation, GradedSample, RunRecord
from ms4_evals.store.results import ResultStore
from ms4_train.config.schema import WandbSection
from ms4_train.tracking.wandb_run import WandbTracker

MOST_SAMPLES = 2_000
"""Rows of the table of samples: W&B shows no more at once, and larger tables make its pages slow. The artifact has all of them."""

_CLIPPED = 4_000
_SCORE_COLUMNS = (
    *("task", "title", "mode", "score", "low", "high", "samples", "complete", "board", "column", "grader"),
    *("correct", "wrong", "no-answer", "truncated", "error", "mean characters", "mean tokens"),
)
_PROBLEM_COLUMNS = ("task", "mode", "problem", "gold", "score", "samples", "mean characters", "mean tokens", "facts")
_SAMPLE_COLUMNS = (
    "task",
    "mode",
    "problem",
    "sample",
    "verdict",
    "extracted",
    "gold",
    "question",
    "thinking",
    "answer",
    "characters",
    "tokens",
)


def log_results(
    section: WandbSection,
    folder: Path,
    *,
    store: ResultStore,
    run: RunRecord,
    evaluations: Sequence[Evaluation],
    report: dict[str, Any],
    metrics: dict[str, float],
    config: dict[str, Any],
    files: Sequence[Path],
) -> str:
    """Log a finished evaluation; returns the id of the W&B run, which is the same whenever the same run is logged.

    Args:
        section: mode ``offline`` or ``online``.
        folder: W&B's files are written below it.
        store: holds the samples.
        run: whose results.
        evaluations: of the run.
        report: as written.
        metrics: for the summary.
        config: of the run.
        files: for the artifact.

    Raises:
        MissingDependencyError: wandb is not installed.
        TrainingError: W&B does not start.
    """
    named = section.model_copy(update={"name": section.name or run.label})
    tracker = WandbTracker(named, folder, config, resumed={"wandb_run_id": run.run_id[:16]})
    try:
        tracker.summary(metrics)
        tracker.table("scores", _SCORE_COLUMNS, list(_score_rows(report)))
        tracker.table("problems", _PROBLEM_COLUMNS, list(_problem_rows(store, run, evaluations)))
        tracker.table("samples", _SAMPLE_COLUMNS, list(_sample_rows(store, run, evaluations)))
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.label)[:80] or "run"
        tracker.artifact(f"evaluation-{name}", "evaluation", files, {"run_id": run.run_id, "complete": report["complete"]})
    finally:
        tracker.close()
    return tracker.run_id


def _score_rows(report: dict[str, Any]) -> Iterator[list[Any]]:
    for task in report["tasks"]:
        for mode in task["modes"]:
            score = mode["score"] or {"value": None, "low": None, "high": None}
            verdicts = mode["verdicts"]
            means = [
                groups["all"]["mean"] if (groups := mode["lengths"][name])["all"] else None for name in ("total_chars", "total_tokens")
            ]
            yield [
                *(task["task"], task["title"], mode["mode"], score["value"], score["low"], score["high"], mode["graded"]),
                *(mode["complete"], task["board_id"], mode["column_id"], task["grader"]),
                *(verdicts[name] for name in ("correct", "wrong", "no-answer", "truncated", "error")),
                *means,
            ]


def _problem_rows(store: ResultStore, run: RunRecord, evaluations: Sequence[Evaluation]) -> Iterator[list[Any]]:
    for evaluation in evaluations:
        groups: dict[str, list[GradedSample]] = {}
        for sample in store.graded_samples(run.run_id, evaluation):
            if sample.error is None:
                groups.setdefault(sample.problem_id, []).append(sample)
        for problem in evaluation.problems:
            samples = groups.get(problem.problem_id, [])
            if samples:
                count = len(samples)
                yield [
                    *(evaluation.task, evaluation.mode, problem.problem_id, printable(problem.gold)[:_CLIPPED]),
                    *(sum(sample.verdict == "correct" for sample in samples) / count, count),
                    sum(sample.thinking_chars + sample.answer_chars for sample in samples) / count,
                    sum(sample.thinking_tokens + sample.answer_tokens for sample in samples) / count,
                    ", ".join(f"{key} {value}" for key, value in problem.facts.items()),
                ]


def _sample_rows(store: ResultStore, run: RunRecord, evaluations: Sequence[Evaluation]) -> Iterator[list[Any]]:
    """The first samples of every evaluation, each with an equal share of the rows."""
    share = max(1, MOST_SAMPLES // max(len(evaluations), 1))
    for evaluation in evaluations:
        questions = {problem.problem_id: problem.question for problem in evaluation.problems}
        for sample in store.graded_samples(run.run_id, evaluation)[:share]:
            texts = store.texts(sample)
            clipped = (_clip(text) for text in (questions[sample.problem_id], texts.thinking, texts.answer))
            yield [
                *(evaluation.task, evaluation.mode, sample.problem_id, sample.sample_index, sample.verdict),
                *(_clip(sample.extracted or ""), _clip(sample.gold), *clipped),
                *(sample.thinking_chars + sample.answer_chars, sample.thinking_tokens + sample.answer_tokens),
            ]


def _clip(text: str) -> str:
    """Of a long text its end, where answers stand."""
    text = printable(text)
    return text if len(text) <= _CLIPPED else f"[{len(text) - _CLIPPED:,} characters left out] {text[-_CLIPPED:]}"
