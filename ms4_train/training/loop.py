"""The training loop. ``ms4_recipes`` puts a ``TrainingRun`` together and calls ``train``.

Exercise it: ``pytest tests/ms4_train/training/test_loop.py``, or ``ms4 train configs/train/tiny_full.yaml``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ms4_train.config.schema import TrainingSection
from ms4_train.data import PackedBatch, TrainLoader
from ms4_train.errors import NotFiniteError, StorageError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.parallel import TrainEngine, progress, traffic
from ms4_train.tracking import Tracker
from ms4_train.training.agreement import Saver, agree
from ms4_train.training.bad_step import BadStep, Draws, folder_of, rows_of, write_bad_step
from ms4_train.training.evaluate import validation_loss
from ms4_train.training.forward import hidden_states
from ms4_train.training.loss import next_token_loss
from ms4_train.training.metrics import ExpertCounter, FlopCounter, Speedometer, router_load
from ms4_train.training.router_loss import RouterLosses
from ms4_train.training.schedule import is_due, learning_rate
from ms4_train.training.stop import StopSignals, TrainingInterruptedError

_LOG = logging.getLogger(__name__)


@dataclass
class TrainingRun:
    """Everything the loop works with.

    Args:
        section: optimizer, schedule and bookkeeping.
        engine: gradients and optimizer.
        model: what ``engine`` trains.
        loader: micro batches of this rank, forever.
        eval_batches: held-out batches of this rank, as many on every rank; may be empty.
        tracker: where metrics go; on ranks other than the main one it does nothing.
        total_steps: optimizer steps of the whole run.
        epoch_steps: optimizer steps of one epoch; 0 where a stream does not say.
        flops: counts operations for ``mfu``.
        speed: clock of the steps.
        saver: commits run state; None when the run saves nothing.
        state: what run state holds beside weights, optimizer and random state; asked for when it is saved.
        answer_tasks: lets the model of the moment answer tasks after that many steps; returns metrics. None where there are no tasks.
        answer_every: steps between two times of that; it is also done after the last one.
        output: folder where the batches of a step are kept whose loss or gradient is not finite; None keeps none.
        seed: of the run, for the record of such a step.
    """

    section: TrainingSection
    engine: TrainEngine
    model: Mistral4ForCausalLM
    loader: TrainLoader
    eval_batches: Sequence[PackedBatch]
    tracker: Tracker
    total_steps: int
    epoch_steps: int
    flops: FlopCounter
    speed: Speedometer
    saver: Saver | None
    state: Callable[[], dict[str, Any]] = dict
    answer_tasks: Callable[[int], dict[str, float]] | None = None
    answer_every: int = 0
    output: Path | None = None
    seed: int = 0
    experts: ExpertCounter = field(default_factory=ExpertCounter)
    router_losses: RouterLosses = field(init=False)

    def __post_init__(self) -> None:
        self.router_losses = RouterLosses(self.model, self.section, self.engine.mesh)


@dataclass(frozen=True)
class StepResult:
    """Sums of one step over all ranks, and this rank's operations. ``loss`` is the main one; ``router`` holds those of the routers.

    ``nll_sums`` are this rank's, one scalar tensor for each micro batch.
    """

    loss: float
    tokens: int
    trained_tokens: int
    flops: float
    router: dict[str, float]
    nll_sums: list[torch.Tensor]


def train(run: TrainingRun, stop: StopSignals, *, first_step: int = 0) -> dict[str, float]:
    """Train from ``first_step`` steps done to ``run.total_steps``; returns the last training and validation loss.

    Raises:
        NotFiniteError: the loss or the gradient is not finite; the weights are then those before the step.
        TrainingInterruptedError: a signal asked for the end; run state is saved.
        StorageError: run state cannot be saved.
    """
    section, engine = run.section, run.engine
    results: dict[str, float] = {}
    run.model.train()
    run.speed.reset()
    micro_batches = iter(run.loader)
    for step in range(first_step, run.total_steps):
        # Data: the micro batches of this step.
        progress.at("data", step + 1)
        batches = [next(micro_batches) for _ in range(section.gradient_accumulation_steps)]
        # Forward and backward: gradients of the mean loss over all trained tokens of the step.
        draws = Draws.now()
        traffic.take()  # what validation and answers have sent since is not this step's
        result = forward_backward(run, batches)
        # Update.
        rate = learning_rate(section, step, run.total_steps)
        norm = update(run, step + 1, rate, batches, result, draws)
        # Report.
        done = step + 1
        run.speed.add(result.tokens, result.flops)
        results["loss"] = result.loss
        counts, sent = run.experts.take(), traffic.take()
        if done % section.logging_steps == 0 or done == run.total_steps:
            metrics = {"loss": result.loss, "learning_rate": rate, "grad_norm": norm, **run.speed.read(), **load_metrics(run, counts)}
            metrics |= result.router | traffic.metrics(sent, engine.mesh)
            run.tracker.log(done, metrics | ({"epoch": done / run.epoch_steps} if run.epoch_steps else {}))
        # Evaluate.
        if run.eval_batches and is_due(section.eval_strategy, section.eval_steps, run.epoch_steps, done, last=run.total_steps):
            results |= evaluate(run, stop, done)
        if run.answer_tasks is not None and is_due("steps", run.answer_every, 0, done, last=run.total_steps):
            results |= answer(run, run.answer_tasks, done)
        # Save, and stop when asked to.
        signal_number = agree(stop, run.saver, engine.mesh)
        saving = is_due(section.save_strategy, section.save_steps, run.epoch_steps, done, last=run.total_steps) or signal_number
        saved = run.saver.save(done, run.state()) if run.saver is not None and saving else None
        if run.saver is not None and (signal_number or done == run.total_steps):
            run.saver.finish()
        if signal_number and done < run.total_steps:
            raise TrainingInterruptedError(signal_number, step=done, saved=saved, resume=section.resume_from_checkpoint)
        if saving:
            run.speed.reset()
    return results


def forward_backward(run: TrainingRun, batches: Sequence[PackedBatch]) -> StepResult:
    """Gradients of one optimizer step: the sum over micro batches and ranks of NLL / trained tokens of the whole step.

    Losses of the routers, where the section has some, are added; each is a mean over all tokens of the step.
    """
    mesh = run.engine.mesh
    counts = torch.tensor([sum(batch.num_trained for batch in batches), sum(batch.num_tokens for batch in batches)], dtype=torch.float64)
    trained_tokens, tokens = mesh.all_reduce_sum(counts).tolist()
    nll_sum = torch.zeros((), dtype=torch.float32, device=mesh.device)
    flops, nll_sums = 0.0, []
    for index, batch in enumerate(batches):
        progress.at("forward")
        with run.router_losses.recording():
            hidden_td = hidden_states(run.model, batch, mesh.device)
        run.experts.add(run.model.expert_counts())
        nll = next_token_loss(run.model.lm_head, hidden_td, batch.target_ids_t.to(mesh.device), chunk_tokens=run.section.loss_chunk_tokens)
        share = nll / max(trained_tokens, 1.0) + run.router_losses.of_micro_batch(run.model.expert_counts(), tokens)
        progress.at("backward")
        run.engine.backward(share, is_last_micro_batch=index == len(batches) - 1)
        nll_sums.append(nll.detach())
        nll_sum += nll_sums[-1]
        flops += run.flops.count(tokens=batch.num_tokens, trained_tokens=batch.num_trained, lengths=batch.lengths, images=batch.images)
    loss = mesh.all_reduce_sum(float(nll_sum)) / max(trained_tokens, 1.0)
    return StepResult(loss, int(tokens), int(trained_tokens), flops, run.router_losses.take_metrics(), nll_sums)


def update(run: TrainingRun, step: int, rate: float, batches: Sequence[PackedBatch], result: StepResult, draws: Draws) -> float:
    """The optimizer step; returns the gradient norm.

    Raises:
        NotFiniteError: the loss or the norm is not finite, on any rank. Nothing was updated, and the batches are on the disk.
    """
    progress.at("optimizer")
    try:
        if not math.isfinite(result.loss):
            raise NotFiniteError(f"the loss is {result.loss}.", value=result.loss)
        return run.engine.step(rate, run.section.max_grad_norm)
    except NotFiniteError as error:
        raise kept(run, step, error, batches, result, draws) from None


def kept(
    run: TrainingRun, step: int, error: NotFiniteError, batches: Sequence[PackedBatch], result: StepResult, draws: Draws
) -> NotFiniteError:
    """Write this rank's batches of a bad step; returns the error that says where they are, the same on every rank. Collective."""
    nll_sums, where, mesh = [float(nll) for nll in result.nll_sums], "", run.engine.mesh
    if run.output is not None:
        folder = folder_of(run.output, step)
        try:
            write_bad_step(folder, mesh.rank, BadStep(step, error.message, error.value, run.seed, list(batches), nll_sums, draws))
            where = f" The batches are in {folder}."
        except StorageError as failure:
            _LOG.warning("the batches of step %d are not kept: %s", step, failure)
    bad = [batch for batch, nll in zip(batches, nll_sums, strict=True) if not math.isfinite(nll)]
    everyone = mesh.all_gather_json([bool(bad), rows_of(bad or batches)])
    is_known = any(has_bad for has_bad, _ in everyone)
    rows = next(text for has_bad, text in everyone if has_bad == is_known)
    what = "loss" if not math.isfinite(result.loss) else "gradient norm"
    return NotFiniteError(
        f"the {what} of step {step} is {error.value}; the weights were not changed. "
        f"{'Rows' if is_known else 'First rows'} of the {'bad batch' if is_known else 'step'}: {rows}.{where}",
        value=error.value,
        fix="lower training.learning_rate, look at these rows with `ms4 data preview`, or resume from an earlier checkpoint.",
    )


def evaluate(run: TrainingRun, stop: StopSignals, done: int) -> dict[str, float]:
    """Validation loss, logged; its time does not count as training. Empty where a signal came meanwhile: saving is then what matters."""
    progress.at("validation")
    mesh = run.engine.mesh
    metrics = validation_loss(
        run.model,
        run.eval_batches,
        mesh,
        chunk_tokens=run.section.loss_chunk_tokens,
        should_stop=lambda: stop.agreed(mesh) != 0,
    )
    if metrics:
        run.tracker.log(done, metrics)
    run.speed.reset()
    return metrics


def answer(run: TrainingRun, tasks: Callable[[int], dict[str, float]], done: int) -> dict[str, float]:
    """Metrics of answered tasks, logged; their time does not count as training. Empty where they were given up for a signal."""
    progress.at("generation")
    metrics = tasks(done)
    if metrics:
        run.tracker.log(done, metrics)
    run.speed.reset()
    return metrics


def load_metrics(run: TrainingRun, counts_le: torch.Tensor | None) -> dict[str, float]:
    """Router load of the step over all ranks."""
    if counts_le is None:
        return {}
    load = router_load(run.engine.mesh.all_reduce_sum(counts_le))
    return {"router_max_over_mean": load.max_over_mean, "dead_experts": load.dead_experts}
