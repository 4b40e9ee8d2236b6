"""Weights and moments inside DeepSpeed's optimizers, read and written per logical parameter and without its own (pickled) checkpoints.

ZeRO 1 and 2 flatten the parameters of a group into one vector and give each rank of the group a stretch of it, so a rank holds a range of
some parameters and nothing of others; ZeRO 3 gives each rank a range of every parameter. Padding at the end belongs to nobody. Nothing here
is collective but ``refresh_parameters``. Exercise it: ``pytest tests/ms4_train/parallel/test_deepspeed_state.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ms4_train.parallel.adamw import set_fresh_state
from ms4_train.parallel.parameters import STATE_TENSORS


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

    def piece(self, parameter: nn.Parameter) -> tuple[int, dict[str, Tensor]] | None:
        """Where this rank's piece of a parameter begins, and views of its three tensors, each [n] in fp32; None where it holds nothing.

        The beginning is counted in values of the flattened parameter as this rank's model has it: with expert parallelism, of its experts.
        After writing into the views, call ``refresh_parameters``.
        """
        keys = {kind: None if kind == "weight" else kind for kind in STATE_TENSORS}
        if self._stage == 3:
            return self._piece_of_stage_3(parameter, keys)
        mapping = parameter._hp_mapping  # type: ignore[attr-defined] # DeepSpeed's: which stretch of its flat vector this is
        if mapping is None:
            return None
        return mapping.lp_fragment_address.start, {kind: mapping.get_hp_fragment(key).detach() for kind, key in keys.items()}

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

    def _piece_of_stage_3(self, parameter: Any, keys: dict[str, str | None]) -> tuple[int, dict[str, Tensor]] | None:
        start, tensors = 0, {}
        for kind, key in keys.items():
            partition, _ = self._zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
            start = partition.numel() * self._zero._get_param_partition_rank(parameter)
            # Partitions have one size, so the last ones reach past the end, or begin there.
            tensors[kind] = partition.detach()[: max(0, parameter.ds_numel - start)]
        return (start, tensors) if tensors["weight"].numel() else None

    def _flat_partitions(self) -> list[Tensor]:
        for attribute in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(self._zero, attribute):
                return list(getattr(self._zero, attribute))
        raise AssertionError(f"unknown ZeRO optimizer {type(self._zero).__name__}")
