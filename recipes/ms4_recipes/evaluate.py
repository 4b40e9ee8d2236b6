"""Evaluation: a model in, a report of its score and output length in both reasoning modes out. ``ms4 eval run FILE.yaml`` runs it.

Reads top to bottom: tasks with their sandbox and judge, the model or the server, identity of the run, samples into the store, report out of
the store. A run that was killed goes on from its store. torch is imported only where a model runs in this process.
Exercise it: ``ms4 eval run configs/eval/arithmetic.yaml``, or ``pytest tests/recipes/ms4_recipes/test_evaluate.py``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ms4_evals.clients.base import Client
from ms4_evals.clients.opening import open_client
from ms4_evals.outside_text import one_line
from ms4_evals.plots import report_plots
from ms4_evals.progress import Progress
from ms4_evals.report import build_report, write_report
from ms4_evals.report_text import headlines
from ms4_evals.resources import Resources
from ms4_evals.runner import Outcome, Plan, make_plans, repeat_notes, run_evaluations
from ms4_evals.store.queries import error_examples, has_samples
from ms4_evals.store.records import Evaluation, RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.registry import build_tasks
from ms4_train.config.evaluation import EvalRun
from ms4_train.config.mesh import check_mesh
from ms4_train.config.schema import ParallelSection
from ms4_train.errors import EvaluationError, ParallelError

_SHOWN_CHARACTERS = 300
"""Of an error."""


def run(config: EvalRun) -> Path:
    """Evaluate as ``config`` says, going on from its store where that holds samples already.

    Under torchrun or ``--nproc`` all ranks call it, and rank 0 does everything but the computing of answers (``evaluate_ranks``).

    Returns:
        The report as JSON; a Markdown file of the same name lies beside it.

    Raises:
        EvaluationError: a task or the store cannot be used, or some samples ended in errors (the report is written, and says so).
        ParallelError: the processes do not fit ``config.parallel``, or a server is to be asked by several.
        MS4Error: the model, adapter, tokenizer or server cannot be used.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return _run_on_ranks(config)
    check_mesh(ParallelSection(expert_parallel_size=config.parallel.expert_parallel_size), 1)
    console = Console()
    with Resources(config.sandbox, config.judge) as resources:
        plans = prepare(config, resources, console)
        with open_client(config, console) as (client, label):
            done = draw(config, client, label, plans, resources, console)
    return tell(config, done, console)


def _run_on_ranks(config: EvalRun) -> Path:
    if config.model is None:
        raise ParallelError(
            "several processes were started, and a server's answers need one.", key="endpoint", fix="start `ms4 eval run FILE` alone."
        )
    from ms4_recipes import evaluate_ranks

    return evaluate_ranks.run(config)


@dataclass(frozen=True)
class Drawn:
    """What an evaluation came to.

    Attributes:
        report: see ``build_report``.
        paths: of the report, as JSON and as text.
        outcome: what was drawn.
        errors: an example of each class of errors.
    """

    report: dict[str, Any]
    paths: tuple[Path, Path]
    outcome: Outcome
    errors: dict[str, str]


def prepare(config: EvalRun, resources: Resources, console: Console) -> list[Plan]:
    """The plans; says what is to be known about them, and refuses what cannot be used before a model is read.

    Raises:
        EvaluationError: a task, its sandbox or judge, or the store.
    """
    tasks = build_tasks(config.tasks, resources)
    plans = make_plans(tasks, config.modes)
    for line in [f"{task.title}: {note}" for task in tasks for note in task.notes] + repeat_notes(plans):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    require_usable_store(Path(config.store))
    return plans


def draw(
    config: EvalRun,
    client: Client,
    label: str,
    plans: Sequence[Plan],
    resources: Resources,
    console: Console,
    progress: Progress | None = None,
) -> Drawn:
    """Samples into the store, report out of it. ``progress`` is shown in place of one on the console.

    Raises:
        MS4Error: as ``run``, but for samples that ended in errors.
    """
    record = RunRecord(label=label, model=client.identity(), seed=config.seed)
    with ResultStore.open(config.store) as store:
        if config.endpoint is not None:
            _refuse_another_label(store, record)
        outcome = run_evaluations(
            client,
            store,
            plans,
            record,
            config=config.model_dump(mode="json"),
            progress=progress or Progress(console),
            workers=resources.workers,
        )
        evaluations = [plan.evaluation for plan in plans]
        store.verify(record.run_id)
        errors = {name: text for item in evaluations for name, text in error_examples(store, record.run_id, item).items()}
        report = build_report(
            store,
            record,
            evaluations,
            confidence=config.confidence,
            resamples=config.bootstrap_samples,
            allow_errors=config.allow_errors,
        )
        paths = write_report(report, report_folder(Path(config.store)), plots=report_plots(report))
        if config.tracking.wandb.mode != "disabled":
            track(config, store, record, evaluations, report, paths)
    return Drawn(report, paths, outcome, errors)


def tell(config: EvalRun, done: Drawn, console: Console) -> Path:
    """Print the main numbers; the report's path.

    Raises:
        EvaluationError: samples ended in errors, and ``allow_errors`` is off.
    """
    console.print(f"{done.outcome.drawn} samples drawn, {done.outcome.reused} taken from the store.", highlight=False)
    for line in headlines(done.report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {done.paths[1]}", highlight=False, markup=False, soft_wrap=True)
    if not config.allow_errors:
        _refuse_errors(done.report, done.outcome, config.store, done.errors)
    return done.paths[0]


def require_usable_store(path: Path) -> None:
    """Refuse a store that cannot be gone on with before a large model is read; none at all is fine, and none is made.

    Raises:
        EvaluationError: the file is not a results store of this version, or another process writes to it.
    """
    if path.exists():
        with ResultStore.open(path):
            pass


def _refuse_another_label(store: ResultStore, record: RunRecord) -> None:
    """A server's model is known by its name alone, which two may share: answers of the first are not passed off as the second's."""
    for known in store.runs():
        if known.run_id == record.run_id and known.label != record.label and has_samples(store, record.run_id):
            raise EvaluationError(
                f"the answers of the server's model {one_line(str(record.model.get('endpoint_model')))} are here already, under the label"
                f" {one_line(known.label)}; whether it is the same model cannot be told from its name.",
                file=store.path,
                key="label",
                fix=f"write label={one_line(known.label)} to go on with them; for another model name another store, or serve it under"
                " another name.",
            )


def report_folder(store: Path) -> Path:
    """Reports lie in a folder beside the store."""
    return store.with_name(f"{store.stem}-reports")


def track(
    config: EvalRun,
    store: ResultStore,
    record: RunRecord,
    evaluations: Sequence[Evaluation],
    report: dict[str, Any],
    files: tuple[Path, Path],
) -> None:
    """Hand numbers, tables and files to W&B, whose own files lie in a folder named like the report."""
    from ms4_evals.wandb_results import log_results

    log_results(
        config.tracking.wandb,
        files[0].with_suffix(""),
        store=store,
        run=record,
        evaluations=evaluations,
        report=report,
        metrics=flat_metrics(report),
        config=config.model_dump(mode="json"),
        files=files,
    )


def flat_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The report's main numbers as ``eval/aime_2025/high/score`` and the like."""
    metrics: dict[str, float] = {}
    for task in report["tasks"]:
        prefix = f"eval/{task['task']}"
        if task["high_minus_none"] is not None:
            metrics[f"{prefix}/high_minus_none"] = task["high_minus_none"]["value"]
        for mode in task["modes"]:
            start = f"{prefix}/{mode['mode']}"
            if mode["score"] is not None:
                metrics[f"{start}/score"] = mode["score"]["value"]
            for name, groups in mode["lengths"].items():
                if groups["all"] is not None:
                    metrics[f"{start}/{name}"] = groups["all"]["mean"]
            for verdict, count in mode["verdicts"].items():
                metrics[f"{start}/{verdict}"] = count
    return metrics


def _refuse_errors(report: dict[str, Any], outcome: Outcome, store: str, errors: dict[str, str]) -> None:
    """An evaluation with errors is not a result; saying so with an exit code keeps scripts from taking it for one."""
    if report["complete"]:
        return
    modes = [mode for task in report["tasks"] for mode in task["modes"]]
    lacking = sum(mode["planned"] - mode["graded"] for mode in modes)
    planned = sum(mode["planned"] for mode in modes)
    why = "".join(f" One was {one_line(name)}: {one_line(text)[:_SHOWN_CHARACTERS]}" for name, text in errors.items())
    why += f" Graders failed on {outcome.ungraded}: {outcome.grader_failures[0]}" if outcome.ungraded else ""
    again = "run the same command again, only those are repeated"
    if "refused" in errors:
        again = "change what the server refuses (model, max_tokens, the server's context, extra_body) and run the command again"
    raise EvaluationError(
        f"{lacking} of {planned} samples have no verdict, so there is no score.{why}",
        file=store,
        fix=f"{again}; allow_errors=true scores the others.",
    )
