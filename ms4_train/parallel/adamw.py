"""AdamW as every engine uses it: decayed and undecayed groups, and state that exists from the start.

torch makes the moments at the first step; here they are made at once, so that a run can be saved before its first step and restored into a
fresh optimizer. Exercise it: ``pytest tests/ms4_train/parallel/test_adamw.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ms4_train.config.schema import TrainingSection

FUSED_DEVICES = {"cpu", "cuda"}


def make_adamw(groups: list[dict[str, Any]], training: TrainingSection) -> torch.optim.AdamW:
    """AdamW over ``groups``, each with ``params`` and ``decays``; empty groups are left out. Fused where torch has it, else foreach.

    Other keys of a group are kept in the optimizer's group.
    """
    kept = [
        {
            **{key: value for key, value in group.items() if key != "decays"},
            "weight_decay": training.weight_decay if group["decays"] else 0.0,
        }
        for group in groups
        if group["params"]
    ]
    fused = {parameter.device.type for group in kept for parameter in group["params"]} <= FUSED_DEVICES
    return torch.optim.AdamW(
        kept,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=fused or None,
        foreach=None if fused else True,
    )


def set_fresh_state(optimizer: torch.optim.Optimizer, parameter: Tensor, step: int) -> None:
    """Zero moments and a step count for ``parameter``, as torch itself would make them."""
    fused = bool(optimizer.defaults["fused"])
    optimizer.state[parameter] = {
        "step": torch.tensor(float(step), dtype=torch.float32, device=parameter.device if fused else "cpu"),
        "exp_avg": torch.zeros_like(parameter, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
    }


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """The learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
