"""What the training loop asks of an engine, and the state that engines give and take.

Both engines hold AdamW with fp32 master weights and fp32 moments, and both give and take optimizer state per logical parameter, so that
run state written on one number of ranks is read on another. Exercise it: ``pytest tests/ms4_train/parallel/test_interface.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ms4_train.parallel.mesh import Mesh


@dataclass(frozen=True)
class ParameterState:
    """Optimizer state of one trained parameter, or of this rank's slice of it.

    ``tensors`` holds ``weight`` (the fp32 master), ``exp_avg`` and ``exp_avg_sq``, all fp32: rows ``[offset, offset + len)`` along dim 0
    of the full tensor of ``full_shape``. They may be views of live state: use them before the next ``step``. Only ``is_owner`` ranks write;
    over all ranks their rows cover the full tensor exactly once.
    """

    name: str
    full_shape: tuple[int, ...]
    offset: int
    tensors: dict[str, Tensor]
    step: int
    is_owner: bool


class TrainEngine(Protocol):
    """Gradients, optimizer and state of a model in training. Every method is collective: all ranks call it, in the same order."""

    mesh: Mesh
    model: nn.Module

    def backward(self, loss: Tensor, *, is_last_micro_batch: bool) -> None:
        """Add the gradient of ``loss`` to what this step has gathered.

        ``loss`` is the summed loss of this rank's micro batch divided by the number of trained tokens of the whole step, over all ranks and
        micro batches; gradients are summed over ranks and micro batches, never averaged. ``is_last_micro_batch`` is True on the
        last call before ``step``.
        """
        ...

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip to ``max_grad_norm`` (0: do not clip), update, clear gradients; returns the global gradient norm before clipping.

        Raises:
            TrainingError: the norm is not finite.
        """
        ...

    def export_state(self) -> Iterator[ParameterState]:
        """State of every trained parameter, one at a time, in the same order on every rank."""
        ...

    def import_state(self, read: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Restore what ``export_state`` gave: bit-exact, also from another number of ranks.

        ``read(name)`` gives ``weight``, ``exp_avg`` and ``exp_avg_sq`` as full fp32 tensors and ``step``; each rank keeps its part.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        ...

    def full_parameters(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named parameters as full tensors in the model's dtype, on every rank; experts are gathered one parameter at a time."""
        ...
