"""Learning rate schedules against transformers' own."""

import pytest
import torch
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from ms4_train.config.schema import TrainingSection
from ms4_train.training.schedule import is_due, learning_rate, steps_per_epoch, total_steps, warmup_steps

STEPS = 40


def their_rates(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = make(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def our_rates(name, **keys):
    section = TrainingSection(learning_rate=3e-4, lr_scheduler_type=name, **keys)
    return [learning_rate(section, step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("warmup", [0, 7])
def test_curves_equal_transformers(warmup):
    theirs = {
        "constant": lambda o: get_constant_schedule_with_warmup(o, warmup),
        "linear": lambda o: get_linear_schedule_with_warmup(o, warmup, STEPS),
        "cosine": lambda o: get_cosine_schedule_with_warmup(o, warmup, STEPS),
        "cosine_with_min_lr": lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, warmup, STEPS, min_lr_rate=0.1),
    }
    for name, make in theirs.items():
        keys = {"min_lr_ratio": 0.1} if name == "cosine_with_min_lr" else {}
        assert our_rates(name, warmup_steps=warmup, **keys) == pytest.approx(their_rates(make), rel=1e-12, abs=1e-18), name


def test_warmup_stable_decay_equals_transformers_after_warmup():
    # Their warm-up starts at min_lr_ratio, ours at 0 as in every other schedule.
    theirs = their_rates(lambda o: get_wsd_schedule(o, 7, 8, num_stable_steps=25, decay_type="linear", min_lr_ratio=0.05))
    ours = our_rates("warmup_stable_decay", warmup_steps=7, min_lr_ratio=0.05)
    assert ours[7:] == pytest.approx(theirs[7:], rel=1e-12)
    assert ours[0] == 0.0


def test_warmup_ratio_rounds_up_and_steps_win():
    assert warmup_steps(TrainingSection(warmup_ratio=0.03), 100) == 3
    assert warmup_steps(TrainingSection(warmup_ratio=0.03), 101) == 4
    assert warmup_steps(TrainingSection(warmup_ratio=0.5, warmup_steps=2), 100) == 2


def test_length_of_a_run():
    assert steps_per_epoch(10, 4) == 3
    assert total_steps(TrainingSection(max_steps=7), 3) == 7
    assert total_steps(TrainingSection(num_train_epochs=2.5), 3) == 8


def test_due_steps():
    due = [done for done in range(1, 13) if is_due("steps", 5, 4, done, last=12)]
    assert due == [5, 10, 12], "the last step is always due"
    assert [done for done in range(1, 13) if is_due("epoch", 5, 4, done, last=12)] == [4, 8, 12]
    assert not any(is_due("no", 1, 1, done, last=12) for done in range(1, 13))
