"""Weights and moments inside DeepSpeed's optimizers, read and written per logical parameter and without its own (pickled) checkpoints.

ZeRO flattens parameters into one vector per group and gives each rank a piece of it. The functions here are collective: a parameter's whole
group calls them together, in the same order. Exercise it: ``pytest tests/ms4_train/parallel/test_deepspeed_engine.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ms4_train.parallel.adamw import set_fresh_state


class ZeroState:
    """State of the optimizer of one DeepSpeed engine (ZeRO 1, 2 or 3)."""

    def __init__(self, zero_optimizer: Any, zero_stage: int) -> None:
        self._zero = zero_optimizer
        self._stage = zero_stage
        self._base: torch.optim.Optimizer = zero_optimizer.optimizer
        self.reset(step=0)

    def reset(self, step: int) -> None:
        """Zero moments for every flat piece of this rank. DeepSpeed itself has none before the first step."""
        for flat in self._flat_partitions():
            set_fresh_state(self._base, flat, step)
        if self._stage < 3:
            # Linking makes fragments of the moments findable per parameter. DeepSpeed links once, after the first group's step, when
            # the other groups have no state yet; ranks that own none of their fragments would then enter a collective alone.
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def step(self) -> int:
        """Optimizer steps taken so far."""
        steps = {int(self._base.state[flat]["step"]) for flat in self._flat_partitions()}
        assert len(steps) == 1, steps
        return steps.pop()

    def full(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """``weight``, ``exp_avg`` or ``exp_avg_sq`` of this rank's experts, or of a replicated parameter, in fp32 and whole."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        value = safe_get_full_fp32_param(parameter) if kind == "weight" else safe_get_full_optimizer_state(parameter, kind)
        assert value is not None
        return value

    def set_full(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Write what ``full`` reads; each rank keeps its piece. Call ``refresh_parameters`` after the last one."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if self._stage == 3:
            self._set_stage3(parameter, None if kind == "weight" else kind, value)
        elif kind == "weight":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def refresh_parameters(self) -> None:
        """Carry written master weights into the parameters that forward uses."""
        if self._stage < 3:
            self._zero.update_lp_params()
            return
        # As at the end of a step: small parameters stay gathered between steps, so their full copies are made anew.
        self._zero._partition_all_parameters()
        for index in range(len(self._flat_partitions())):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        persistent = self._zero.persistent_parameters
        if persistent:
            persistent[0].all_gather(persistent)

    def _set_stage3(self, parameter: Any, kind: str | None, value: Tensor) -> None:
        # DeepSpeed's own setter cuts past the end of a tensor whose size is not a multiple of the number of ranks.
        piece, _ = self._zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=kind)
        start = piece.numel() * self._zero._get_param_partition_rank(parameter)
        own = value.flatten()[start : start + piece.numel()]
        piece.data[: own.numel()].copy_(own)

    def _flat_partitions(self) -> list[Tensor]:
        for attribute in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(self._zero, attribute):
                return list(getattr(self._zero, attribute))
        raise AssertionError(f"unknown ZeRO optimizer {type(self._zero).__name__}")
