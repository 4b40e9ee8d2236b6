"""AdamW as every engine uses it: decayed and undecayed groups, and state that exists from the start.

torch makes the moments at the first step; here they are made at once, so that a run can be saved before its first step and restored into a
fresh optimizer. Exercise it: ``pytest tests/ms4_train/parallel/test_adamw.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ms4_train.config.schema import TrainingSection

FUSED_DEVICES = {"cpu", "cuda"}


class LeanAdamW:
    """torch's fused AdamW without its ``Optimizer`` class, which loads torch's compiler: a hundred megabytes that training has no use for.

    Has what the engine of one process asks of an optimizer: ``param_groups``, ``state``, ``defaults``, ``step``, ``zero_grad``. Updates are
    equal to ``torch.optim.AdamW``'s to the bit.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, fused: bool) -> None:
        self.defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "fused": fused}
        self.param_groups: list[dict[str, Any]] = [{**self.defaults, **group} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, gradient_factor: float = 1.0) -> None:
        """Update every parameter that has a gradient; its state must exist.

        Args:
            gradient_factor: what clipping multiplies the gradients by. Fused, it is applied where a gradient is read anyway; the
                gradients are the multiplied ones afterwards.
        """
        scale = None
        if gradient_factor != 1 and self.defaults["fused"]:
            scale = torch.tensor(1 / gradient_factor if gradient_factor > 0 else torch.inf)
        elif gradient_factor != 1:
            for gradient in self._gradients():
                gradient.mul_(gradient_factor)
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self.state[parameter] for parameter in trained]
            adamw(
                trained,
                [parameter.grad for parameter in trained],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=group["fused"],
                foreach=not group["fused"],
                amsgrad=False,
                maximize=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                grad_scale=scale,
            )

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for group in self.param_groups for parameter in group["params"] if parameter.grad is not None]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def make_lean_adamw(groups: list[dict[str, Any]], training: TrainingSection) -> LeanAdamW:
    """:class:`LeanAdamW` over ``groups``, as :func:`make_adamw` makes torch's."""
    return LeanAdamW(_with_decay(groups, training), **_options(training), fused=_all_fused(groups))


def make_adamw(groups: list[dict[str, Any]], training: TrainingSection) -> torch.optim.AdamW:
    """AdamW over ``groups``, each with ``params`` and ``decays``; empty groups are left out. Fused where torch has it, else foreach.

    Other keys of a group are kept in the optimizer's group.
    """
    fused = _all_fused(groups)
    return torch.optim.AdamW(_with_decay(groups, training), **_options(training), fused=fused or None, foreach=None if fused else True)


def _with_decay(groups: list[dict[str, Any]], training: TrainingSection) -> list[dict[str, Any]]:
    return [
        {
            **{key: value for key, value in group.items() if key != "decays"},
            "weight_decay": training.weight_decay if group["decays"] else 0.0,
        }
        for group in groups
        if group["params"]
    ]


def _options(training: TrainingSection) -> dict[str, Any]:
    return {"lr": training.learning_rate, "betas": (training.adam_beta1, training.adam_beta2), "eps": training.adam_epsilon}


def _all_fused(groups: list[dict[str, Any]]) -> bool:
    return {parameter.device.type for group in groups for parameter in group["params"]} <= FUSED_DEVICES


def set_fresh_state(optimizer: torch.optim.Optimizer | LeanAdamW, parameter: Tensor, step: int) -> None:
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
