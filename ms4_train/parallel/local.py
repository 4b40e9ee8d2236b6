"""Training with a plain optimizer: torch's AdamW on fp32 weights, or on fp32 masters of bf16 weights.

One process needs nothing else. With several processes (``zero_stage: 0``) every rank holds the optimizer state of all it computes with, and
gradients are summed before the step: replicated parameters over all ranks, experts over the ranks that hold the same ones.
Exercise it: ``pytest tests/ms4_train/parallel/test_local.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ms4_kernels.native.norm import sum_of_squares
from ms4_train.config.schema import TrainingSection
from ms4_train.errors import NotFiniteError
from ms4_train.parallel.adamw import make_lean_adamw, set_fresh_state, set_learning_rate
from ms4_train.parallel.interface import StatePiece
from ms4_train.parallel.mesh import Mesh
from ms4_train.parallel.parameters import (
    STATE_TENSORS,
    broadcast_quantised,
    checked_piece,
    even_share,
    expert_parameters,
    gather_experts,
    trained_parameters,
)

_CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


class LocalEngine:
    """The engine of a run without DeepSpeed. Satisfies ``TrainEngine``.

    With bf16 parameters, gradients of micro batches are added in fp32 on the masters, so accumulation does not lose small
    contributions; the bf16 gradient is freed as soon as it has been added. A parameter without a gradient counts as having gradient zero.

    Raises:
        TrainingError: no parameter is trained.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, *, training: TrainingSection) -> None:
        self.model = model
        self.mesh = mesh
        self._trained = trained_parameters(model, mesh)
        self._make_replicas_equal()
        self._masters = [_master(trained.parameter) for trained in self._trained]
        for trained, master in zip(self._trained, self._masters, strict=True):
            if master is not trained.parameter:
                trained.parameter.register_post_accumulate_grad_hook(_add_gradient_to(master))
        groups = [
            {"params": [m for t, m in zip(self._trained, self._masters, strict=True) if t.decays == decays], "decays": decays}
            for decays in (True, False)
        ]
        self._optimizer = make_lean_adamw(groups, training)
        for master in self._masters:
            set_fresh_state(self._optimizer, master, 0)

    def backward(self, loss: Tensor, *, is_last_micro_batch: bool) -> None:
        """Add the gradient of ``loss``; see ``TrainEngine.backward``."""
        if loss.requires_grad:  # not where nothing trained took part: an adapter on the vision, and rows without images
            loss.backward()

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip, update, clear gradients; returns the gradient norm before clipping. Nothing is updated when the norm is not finite.

        Raises:
            NotFiniteError: the norm is not finite.
        """
        norm = self._reduced_gradient_norm()
        if not math.isfinite(norm):
            raise not_finite(norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step(gradient_factor=min(1.0, max_grad_norm / (norm + _CLIP_EPS)) if max_grad_norm > 0 else 1.0)
        self._optimizer.zero_grad()
        self._refresh_parameters()
        return norm

    def export_state(self) -> Iterator[StatePiece]:
        """Pieces of live state; ranks that hold the same values share out the writing evenly."""
        for trained, master in zip(self._trained, self._masters, strict=True):
            held_start, held_stop = trained.flat_range
            if trained.sharded:
                replica, replicas = self.mesh.expert_data_parallel_rank, self.mesh.expert_data_parallel_size
            else:
                replica, replicas = self.mesh.rank, self.mesh.world_size
            start, stop = even_share(held_start, held_stop, replica, replicas)
            if start == stop:
                continue
            tensors = {kind: flat[start - held_start : stop - held_start] for kind, flat in self._flat_state(master).items()}
            yield StatePiece(trained.name, trained.full_shape, start, tensors, int(self._optimizer.state[master]["step"]))

    @torch.no_grad()
    def import_state(self, read: Callable[[str, int, int], Mapping[str, Tensor]]) -> None:
        """Restore exported state, bit-exact; see ``TrainEngine.import_state``.

        Raises:
            CheckpointError: a tensor is missing or has another size.
        """
        for trained, master in zip(self._trained, self._masters, strict=True):
            tensors, step = checked_piece(trained.name, master.numel(), read(trained.name, *trained.flat_range))
            for kind, flat in self._flat_state(master).items():
                flat.copy_(tensors[kind])
            self._optimizer.state[master]["step"].fill_(step)
        self._refresh_parameters()

    def full_parameters(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named parameters, in the model's dtype; sharded experts are gathered."""
        parameters = dict(self.model.named_parameters())
        sharded = expert_parameters(self.model) if self.mesh.expert_parallel_size > 1 else {}
        for name in names:
            local = parameters[name].detach()
            yield name, gather_experts(local, self.mesh) if name in sharded else local

    def _flat_state(self, master: nn.Parameter) -> dict[str, Tensor]:
        """Views of the master and its moments, each 1-D."""
        state = {"weight": master.detach(), **self._optimizer.state[master]}
        return {kind: state[kind].view(-1) for kind in STATE_TENSORS}

    def whole_weights(self) -> AbstractContextManager[None]:
        """See ``TrainEngine.whole_weights``: they always are."""
        return nullcontext()

    def _make_replicas_equal(self) -> None:
        # Ranks that differ at the start would train different models without any error; DeepSpeed broadcasts for the same reason.
        if self.mesh.world_size == 1:
            return
        sharded = expert_parameters(self.model) if self.mesh.expert_parallel_size > 1 else {}
        for name, parameter in self.model.named_parameters():
            dist.broadcast(parameter.data, group=self.mesh.expert_data_parallel_group if name in sharded else None, group_src=0)
        broadcast_quantised(self.model, self.mesh)

    @torch.no_grad()
    def _reduced_gradient_norm(self) -> float:
        """Sums gradients over ranks; the global norm, which counts every expert once."""
        squares = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)  # replicated, sharded
        for trained, master in zip(self._trained, self._masters, strict=True):
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            if self.mesh.world_size > 1:
                dist.all_reduce(master.grad, group=self.mesh.expert_data_parallel_group if trained.sharded else None)
            squares[int(trained.sharded)] += sum_of_squares(master.grad)
        if self.mesh.expert_parallel_size > 1:
            dist.all_reduce(squares[1:], group=self.mesh.expert_parallel_group)
        return math.sqrt(float(squares.sum()))

    @torch.no_grad()
    def _refresh_parameters(self) -> None:
        for trained, master in zip(self._trained, self._masters, strict=True):
            if master is not trained.parameter:
                trained.parameter.copy_(master)


def not_finite(norm: float) -> NotFiniteError:
    """The error of a step whose gradient norm is infinite or not a number."""
    fix = "lower training.learning_rate or resume from an earlier checkpoint."
    return NotFiniteError(f"the gradient norm is {norm}.", value=norm, fix=fix)


def _master(parameter: nn.Parameter) -> nn.Parameter:
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().to(torch.float32))


def _add_gradient_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if master.grad is None:
            master.grad = gradient.to(torch.float32)
        else:
            master.grad.add_(gradient)
        parameter.grad = None

    return add
