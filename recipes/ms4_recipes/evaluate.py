"""Evaluation: a model in, a report of its score and output length in both reasoning modes out. ``ms4 eval FILE.yaml`` runs it.

Reads top to bottom: tasks, model and adapter, identity of the run, samples into the store, report out of the store. A run that was killed
goes on from its store. Exercise it: ``ms4 eval configs/eval/arithmetic.yaml``, or ``pytest tests/recipes/ms4_recipes/test_evaluate.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ms4_evals.clients.engine import EngineClient
from ms4_evals.identity import content_hash, file_hash
from ms4_evals.progress import Progress
from ms4_evals.report import build_report, write_report
from ms4_evals.report_text import percent
from ms4_evals.runner import Plan, make_plans, run_evaluations
from ms4_evals.store.records import RunRecord
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.registry import build_tasks
from ms4_train.adapters import load_adapter
from ms4_train.chat import ChatTokenizer
from ms4_train.config.evaluation import EvalRun
from ms4_train.config.schema import ModelSection
from ms4_train.errors import EvaluationError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.weights import base_fingerprint, load_model, open_checkpoint
from ms4_train.weights.reading.base_weights import base_weights_line

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What changes neither prompts nor samples nor the report's numbers stays out of the recorded configuration.
_UNRECORDED = {"store", "label", "engine", "tracking"}


def run(config: EvalRun) -> Path:
    """Evaluate as ``config`` says, going on from its store where that holds samples already.

    Returns:
        The report as JSON; a Markdown file of the same name lies beside it.

    Raises:
        EvaluationError: a task or the store cannot be used, or some samples ended in errors (the report is written, and says so).
        MS4Error: the model, adapter or tokenizer cannot be used.
    """
    console = Console()
    plans = make_plans(build_tasks(config.tasks), config.modes)
    require_usable_store(Path(config.store))
    model, tokenizer, identity = load_model_under_test(config.model, console)
    record = RunRecord(label=config.label or default_label(config.model), model=identity, seed=config.seed)
    client = EngineClient(
        model, tokenizer, identity=identity, max_batch_size=config.engine.max_batch_size, max_context=config.engine.max_context
    )
    with ResultStore.open(config.store) as store:
        outcome = run_evaluations(
            client, store, plans, record, config=config.model_dump(mode="json", exclude=_UNRECORDED), progress=Progress(console)
        )
        report = build_report(
            store,
            record,
            [plan.evaluation for plan in plans],
            confidence=config.confidence,
            resamples=config.bootstrap_samples,
        )
    path, text_path = write_report(report, report_folder(Path(config.store)))
    track(config, report, path.with_suffix(""))
    console.print(f"{outcome.drawn} samples drawn, {outcome.reused} taken from the store.", highlight=False)
    for line in headlines(report):
        console.print(line, highlight=False, markup=False)
    console.print(f"report: {text_path}", highlight=False, markup=False, soft_wrap=True)
    _refuse_errors(plans, report, config.store)
    return path


def require_usable_store(path: Path) -> None:
    """Refuse a store that cannot be gone on with before a large model is read; none at all is fine, and none is made.

    Raises:
        EvaluationError: the file is not a results store of this version, or another process writes to it.
    """
    if path.exists():
        with ResultStore.open(path):
            pass


def load_model_under_test(
    section: ModelSection, console: Console | None = None
) -> tuple[Mistral4ForCausalLM, ChatTokenizer, dict[str, Any]]:
    """Model with its adapter, tokenizer, and what identifies them; says on ``console`` how quantised weights are held.

    Weights that are kept quantised have the values that they have dequantised to the same type, so they identify the same model.

    Raises:
        MS4Error: a file is missing, malformed, or belongs to another model.
    """
    fingerprint = base_fingerprint(section.path)
    tokenizer = ChatTokenizer.of_model(section.path, section.tokenizer)
    model = load_model(
        section.path,
        dtype=getattr(torch, section.dtype),
        softmax_scale=section.softmax_scale,
        experts_backend=section.experts_backend,
        dequantise=section.dequantizes(default=True),
    )
    layout = open_checkpoint(section.path).layout
    line = base_weights_line(layout, model)
    if console is not None and line is not None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    identity: dict[str, Any] = {
        "weights": fingerprint,
        "tokenizer": file_hash(tokenizer.path),
        "dtype": section.dtype,
        "softmax_scale": model.config.softmax_scale,
        "adapter": None,
    }
    if layout.encoding != "plain" and section.dtype != "bfloat16":
        identity["encoding"] = layout.encoding  # finer values than those of a bf16 conversion, which has the same fingerprint
    if section.adapter is not None:
        load_adapter(model, section.adapter, base_fingerprint=fingerprint)
        identity["adapter"] = content_hash([file_hash(Path(section.adapter) / name) for name in _ADAPTER_FILES])
    return model.eval(), tokenizer, identity


def default_label(section: ModelSection) -> str:
    """Name of the model's folder, and of the adapter's; a folder named ``model`` or ``adapter`` goes by its parent too."""

    def name(folder: str) -> str:
        path = Path(folder).resolve()
        return f"{path.parent.name}/{path.name}" if path.name in ("model", "adapter") else path.name

    return name(section.path) if section.adapter is None else f"{name(section.path)} + {name(section.adapter)}"


def report_folder(store: Path) -> Path:
    """Reports lie in a folder beside the store."""
    return store.with_name(f"{store.stem}-reports")


def headlines(report: dict[str, Any]) -> list[str]:
    """One line per task and mode, and one per difference."""
    lines: list[str] = []
    for task in report["tasks"]:
        lines.append(task["title"])
        for mode in task["modes"]:
            score, chars = mode["score"], mode["lengths"]["total_chars"]["all"]
            if score is not None:
                interval = f"{percent(score['low'])} to {percent(score['high'])}"
                state = "" if mode["complete"] else f", {mode['graded']} of {mode['planned']} samples only"
                lines.append(f"  {mode['mode']:4}  {percent(score['value'])} %  ({interval}), {chars['mean']:,.0f} characters{state}")
        difference = task["high_minus_none"]
        if difference is not None:
            low, high = 100 * difference["low"], 100 * difference["high"]
            lines.append(f"  high - none  {100 * difference['value']:+.1f} points  ({low:+.1f} to {high:+.1f})")
    return lines


def track(config: EvalRun, report: dict[str, Any], folder: Path) -> None:
    """Hand the numbers to W&B, where that is on; its files lie in ``folder``."""
    if config.tracking.wandb.mode == "disabled":
        return
    from ms4_train.tracking import make_trackers

    section = config.tracking.model_copy(update={"console": False})
    trackers = make_trackers(section, folder, config.model_dump(mode="json"), total_steps=0)
    try:
        trackers.summary(flat_metrics(report))
    finally:
        trackers.close()


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


def _refuse_errors(plans: list[Plan], report: dict[str, Any], store: str) -> None:
    """An evaluation with errors is not a result; saying so with an exit code keeps scripts from taking it for one."""
    if not report["complete"]:
        errors = sum(mode["verdicts"]["error"] + mode["missing"] for task in report["tasks"] for mode in task["modes"])
        planned = sum(plan.evaluation.planned for plan in plans)
        raise EvaluationError(
            f"{errors} of {planned} samples have no answer.", file=store, fix="run the same command again; only those samples are repeated."
        )
