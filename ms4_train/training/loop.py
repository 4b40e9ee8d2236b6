"""The training loop. ``ms4_recipes`` puts a ``TrainingRun`` together and calls ``train``.

Exercise it: ``pytest tests/ms4_train/training/test_loop.py``, or ``ms4 train configs/train/tiny_full.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ms4_train.config.schema import TrainingSection
from ms4_train.data import PackedBatch, TrainLoader
from ms4_train.errors import TrainingError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.parallel import TrainEngine
from ms4_train.tracking import Tracker
from ms4_train.training.evaluate import validation_loss
from ms4_train.training.forward import hidden_states
from ms4_train.training.loss import next_token_loss
from ms4_train.training.metrics import ExpertCounter, FlopCounter, Speedometer, router_load
from ms4_train.training.router_loss import RouterLosses
from ms4_train.training.schedule import is_due, learning_rate
from ms4_train.training.stop import StopSignals, TrainingInterruptedError


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
        save: commits run state after that many steps; None when the run saves nothing.
        answer_tasks: lets the model of the moment answer tasks after that many steps; returns metrics. None where there are no tasks.
        answer_every: steps between two times of that; it is also done after the last one.
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
    save: Callable[[int], Path] | None
    answer_tasks: Callable[[int], dict[str, float]] | None = None
    answer_every: int = 0
    experts: ExpertCounter = field(default_factory=ExpertCounter)
    router_losses: RouterLosses = field(init=False)

    def __post_init__(self) -> None:
        self.router_losses = RouterLosses(self.model, self.section, self.engine.mesh)


@dataclass(frozen=True)
class StepResult:
    """Sums of one step over all ranks, and this rank's operations. ``loss`` is the main one; ``router`` holds those of the routers."""

    loss: float
    tokens: int
    trained_tokens: int
    flops: float
    router: dict[str, float]


def train(run: TrainingRun, stop: StopSignals, *, first_step: int = 0) -> dict[str, float]:
    """Train from ``first_step`` steps done to ``run.total_steps``; returns the last training and validation loss.

    Raises:
        TrainingError: the loss or the gradient is not finite; the weights are then those before the step.
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
        batches = [next(micro_batches) for _ in range(section.gradient_accumulation_steps)]
        # Forward and backward: gradients of the mean loss over all trained tokens of the step.
        result = forward_backward(run, batches)
        require_finite(result.loss, step + 1, batches)
        # Update.
        rate = learning_rate(section, step, run.total_steps)
        norm = engine.step(rate, section.max_grad_norm)
        # Report.
        done = step + 1
        run.speed.add(result.tokens, result.flops)
        results["loss"] = result.loss
        counts = run.experts.take()
        if done % section.logging_steps == 0 or done == run.total_steps:
            metrics = {"loss": result.loss, "learning_rate": rate, "grad_norm": norm, **run.speed.read(), **load_metrics(run, counts)}
            metrics |= result.router
            run.tracker.log(done, metrics | ({"epoch": done / run.epoch_steps} if run.epoch_steps else {}))
        # Evaluate.
        if run.eval_batches and is_due(section.eval_strategy, section.eval_steps, run.epoch_steps, done, last=run.total_steps):
            results |= evaluate(run, done)
        if run.answer_tasks is not None and is_due("steps", run.answer_every, 0, done, last=run.total_steps):
            results |= answer(run, run.answer_tasks, done)
        # Save, and stop when asked to.
        signal_number = stop.agreed(engine.mesh)
        saving = is_due(section.save_strategy, section.save_steps, run.epoch_steps, done, last=run.total_steps) or signal_number
        saved = run.save(done) if run.save is not None and saving else None
        if signal_number and done < run.total_steps:
            raise TrainingInterruptedError(signal_number, step=done, saved=saved)
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
    flops = 0.0
    for index, batch in enumerate(batches):
        with run.router_losses.recording():
            hidden_td = hidden_states(run.model, batch, mesh.device)
        run.experts.add(run.model.expert_counts())
        nll = next_token_loss(run.model.lm_head, hidden_td, batch.target_ids_t.to(mesh.device), chunk_tokens=run.section.loss_chunk_tokens)
        share = nll / max(trained_tokens, 1.0) + run.router_losses.of_micro_batch(run.model.expert_counts(), tokens)
        run.engine.backward(share, is_last_micro_batch=index == len(batches) - 1)
        nll_sum += nll.detach()
        flops += run.flops.count(tokens=batch.num_tokens, trained_tokens=batch.num_trained, lengths=batch.lengths, images=batch.images)
    loss = mesh.all_reduce_sum(float(nll_sum)) / max(trained_tokens, 1.0)
    return StepResult(loss, int(tokens), int(trained_tokens), flops, run.router_losses.take_metrics())


def require_finite(loss: float, step: int, batches: Sequence[PackedBatch]) -> None:
    """Stop before the optimizer touches the weights.

    Raises:
        TrainingError: names the step and rows of this rank's batches.
    """
    if not math.isfinite(loss):
        rows = [row for batch in batches for row in batch.row_ids]
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        raise TrainingError(
            f"the loss of step {step} is {loss}; the weights were not changed. Rows of the step: {shown}.",
            fix="lower training.learning_rate, look at these rows with `ms4 data preview`, or resume from an earlier checkpoint.",
        )


def evaluate(run: TrainingRun, done: int) -> dict[str, float]:
    """Validation loss, logged; its time does not count as training."""
    metrics = validation_loss(run.model, run.eval_batches, run.engine.mesh, chunk_tokens=run.section.loss_chunk_tokens)
    run.tracker.log(done, metrics)
    run.speed.reset()
    return metrics


def answer(run: TrainingRun, tasks: Callable[[int], dict[str, float]], done: int) -> dict[str, float]:
    """Metrics of answered tasks, logged; their time does not count as training."""
    metrics = tasks(done)
    run.tracker.log(done, metrics)
    run.speed.reset()
    return metrics


def load_metrics(run: TrainingRun, counts_le: torch.Tensor | None) -> dict[str, float]:
    """Router load of the step over all ranks."""
    if counts_le is None:
        return {}
    load = router_load(run.engine.mesh.all_reduce_sum(counts_le))
    return {"router_max_over_mean": load.max_over_mean, "dead_experts": load.dead_experts}
