"""Training over several processes: DeepSpeed's ZeRO for what is replicated, experts spread by ``exchange``.

Gradients are sums, not averages: DeepSpeed divides by the number of ranks, so losses are multiplied by it first. Learning rate, clipping
and the end of accumulation are set from outside at every step. Exercise it: ``pytest tests/ms4_train/parallel/test_deepspeed_engine.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ms4_train.config.schema import ParallelSection, TrainingSection
from ms4_train.errors import CheckpointError
from ms4_train.model import Mistral3ForConditionalGeneration
from ms4_train.parallel.adamw import set_learning_rate
from ms4_train.parallel.deepspeed_gather import whole_parameters
from ms4_train.parallel.deepspeed_setup import initialize
from ms4_train.parallel.deepspeed_state import ZeroState
from ms4_train.parallel.interface import StatePiece
from ms4_train.parallel.local import not_finite
from ms4_train.parallel.mesh import Mesh
from ms4_train.parallel.parameters import (
    broadcast_quantised,
    checked_piece,
    expert_modules,
    expert_parameters,
    gather_experts,
    gathered,
    trained_parameters,
)


class DeepSpeedEngine:
    """The engine of a run with several processes. Satisfies ``TrainEngine``; ``model`` is called directly, as without it.

    Raises:
        TrainingError: no parameter is trained.
        ParallelError: trained parameters have several types.
        MissingDependencyError: deepspeed is not installed.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, *, training: TrainingSection, parallel: ParallelSection) -> None:
        assert mesh.world_size > 1
        if mesh.expert_parallel_size > 1:
            assert all(module.exchange is not None for _, module in expert_modules(model)), "shard_experts comes before the engine"
        if isinstance(model, Mistral3ForConditionalGeneration):
            model.always_run_vision = True  # ranks meet in its modules, to gather weights and to add gradients, whatever rows they got
        self.model = model
        self.mesh = mesh
        self._stage = parallel.zero_stage
        self._trained = trained_parameters(model, mesh)
        self._sharded_names = set(expert_parameters(model)) if mesh.expert_parallel_size > 1 else set()
        self._engine = initialize(model, self._trained, mesh, training=training, parallel=parallel)
        broadcast_quantised(model, mesh)  # DeepSpeed does so with parameters only
        self._zero = self._engine.optimizer
        self._state = ZeroState(self._zero, parallel.zero_stage)

    def backward(self, loss: Tensor, *, is_last_micro_batch: bool) -> None:
        """Add the gradient of ``loss``; see ``TrainEngine.backward``."""
        self._engine.set_gradient_accumulation_boundary(is_last_micro_batch)
        # The two calls that DeepSpeed's own forward makes; here the loss may be any function of the model's outputs.
        self._zero.clear_backward_seen_flag()
        self._engine._backward_prologue()
        self._engine.backward(loss * self.mesh.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip, update, clear gradients; returns the gradient norm before clipping. Nothing is updated when the norm is not finite.

        Raises:
            NotFiniteError: the norm is not finite.
        """
        self._zero.clip_grad = max_grad_norm
        set_learning_rate(self._zero, learning_rate)
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not self._engine.was_step_applied() or not math.isfinite(norm) or norm < 0:
            raise not_finite(norm if norm >= 0 else math.nan)  # DeepSpeed writes -1 for a norm that is not a number
        return norm

    def export_state(self) -> Iterator[StatePiece]:
        """This rank's pieces of ZeRO's partitions, as views of live state."""
        step = self._state.step()
        for trained in self._trained:
            piece = self._state.piece(trained.parameter)
            if piece is not None:
                start, tensors = piece
                yield StatePiece(trained.name, trained.full_shape, trained.flat_range[0] + start, tensors, step)

    @torch.no_grad()
    def import_state(self, read: Callable[[str, int, int], Mapping[str, Tensor]]) -> None:
        """Restore exported state, bit-exact; see ``TrainEngine.import_state``.

        Raises:
            CheckpointError: a tensor is missing or has another size.
        """
        # A rank that holds nothing (a tiny model on many ranks) counts its steps too.
        first = next(((piece.name, piece.start) for piece in self.export_state()), (self._trained[0].name, 0))
        _, step = checked_piece(first[0], 1, read(first[0], first[1], first[1] + 1))
        self._state.reset(step)
        for piece in self.export_state():
            tensors, own_step = checked_piece(piece.name, piece.stop - piece.start, read(piece.name, piece.start, piece.stop))
            if own_step != step:
                raise CheckpointError(f"the stored step is {own_step}, that of other parameters {step}.", key=piece.name)
            for kind, held in piece.tensors.items():
                held.copy_(tensors[kind])
        self._state.refresh_parameters()

    def full_parameters(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named parameters, in the model's dtype, on every rank; sharded experts are gathered."""
        parameters = dict(self.model.named_parameters())
        for name in names:
            with gathered(parameters[name]) as whole:
                local = whole.clone() if self._stage == 3 else whole
            yield name, gather_experts(local, self.mesh) if name in self._sharded_names else local

    def whole_weights(self) -> AbstractContextManager[None]:
        """See ``TrainEngine.whole_weights``; under ZeRO 1 and 2 there is nothing to do."""
        return whole_parameters(self.model, self._zero) if self._stage == 3 else nullcontext()
