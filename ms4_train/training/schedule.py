"""Learning rate by step, and on which steps something is due.

Plain functions of the step number, so nothing about them needs saving: a resumed run asks for the step it is at. The curves equal
``transformers.get_scheduler``. Exercise it: ``pytest tests/ms4_train/training/test_schedule.py``.
"""

from __future__ import annotations

import math

from ms4_train.config.schema import TrainingSection

DECAY_SHARE = 0.2
"""Share of the steps at the end of ``warmup_stable_decay`` in which the rate falls."""


def warmup_steps(section: TrainingSection, total_steps: int) -> int:
    """Steps of linear warm-up: ``warmup_steps`` when positive, else ``warmup_ratio`` of all steps, rounded up."""
    return section.warmup_steps if section.warmup_steps > 0 else math.ceil(section.warmup_ratio * total_steps)


def learning_rate(section: TrainingSection, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step ``step``, counted from 0.

    As in transformers, warm-up starts at 0, so with warm-up the very first step moves nothing.
    """
    return section.learning_rate * _factor(section, step, total_steps)


def _factor(section: TrainingSection, step: int, total_steps: int) -> float:
    warmup = warmup_steps(section, total_steps)
    if step < warmup:
        return step / max(1, warmup)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    floor = section.min_lr_ratio
    match section.lr_scheduler_type:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return _half_cosine(progress)
        case "cosine_with_min_lr":
            return floor + (1.0 - floor) * _half_cosine(progress)
        case "warmup_stable_decay":
            decay = math.ceil(DECAY_SHARE * total_steps)
            decayed = min(1.0, max(0.0, (step - (total_steps - decay)) / max(1, decay)))
            return floor + (1.0 - floor) * (1.0 - decayed)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def steps_per_epoch(rows_per_epoch: int, rows_per_step: int) -> int:
    """Optimizer steps that see every packed row once; the last one may run into the next epoch."""
    return max(1, math.ceil(rows_per_epoch / rows_per_step))


def total_steps(section: TrainingSection, epoch_steps: int) -> int:
    """Optimizer steps of the run: ``max_steps``, or ``num_train_epochs`` epochs when it is -1."""
    return section.max_steps if section.max_steps >= 0 else max(1, math.ceil(section.num_train_epochs * epoch_steps))


def is_due(strategy: str, every_steps: int, epoch_steps: int, done_steps: int, *, last: int) -> bool:
    """Whether something with a ``no | steps | epoch`` strategy is due after ``done_steps`` optimizer steps.

    It is always due after the ``last`` step, so that a run shorter than one interval is evaluated and saved too.
    """
    if strategy == "no":
        return False
    return done_steps == last or done_steps % (every_steps if strategy == "steps" else epoch_steps) == 0
