"""What the training loop asks of an engine, and the state that engines give and take.

Both engines hold AdamW with fp32 master weights and fp32 moments. State is given and taken in flat pieces of logical parameters: each rank
gives what it holds without asking the others, and reads back what it holds, so that run state written on one number of ranks is read on
another. Exercise it: ``pytest tests/ms4_train/parallel/test_interface.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ms4_train.parallel.mesh import Mesh


@dataclass(frozen=True)
class StatePiece:
    """Optimizer state of values ``[start, start + n)`` of one trained parameter, flattened in row-major order; n is 1 or more.

    ``tensors`` holds ``weight`` (the fp32 master), ``exp_avg`` and ``exp_avg_sq``, each [n] in fp32, on any device. They may be views of
    live state: copy them before the next ``step``. ``full_shape`` is that of the whole parameter, over all ranks.
    """

    name: str
    full_shape: tuple[int, ...]
    start: int
    tensors: dict[str, Tensor]
    step: int

    @property
    def stop(self) -> int:
        """One past the last value."""
        return self.start + self.tensors["weight"].numel()


class TrainEngine(Protocol):
    """Gradients, optimizer and state of a model in training.

    Methods are collective, that is, all ranks call them in the same order; ``export_state`` is not.
    """

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
            NotFiniteError: the norm is not finite, on any rank.
        """
        ...

    def export_state(self) -> Iterator[StatePiece]:
        """The pieces that this rank writes; over all ranks they hold every value of every trained parameter exactly once.

        Not collective: a rank may stop in the middle, or begin later than others.
        """
        ...

    def import_state(self, read: Callable[[str, int, int], Mapping[str, Tensor]]) -> None:
        """Restore what ``export_state`` gave: bit-exact, also from another number of ranks, another mesh or another ZeRO stage.

        ``read(name, start, stop)`` gives ``weight``, ``exp_avg`` and ``exp_avg_sq`` of values ``[start, stop)`` of the flattened parameter,
        each [stop - start] in fp32, and ``step``. Each rank asks for what it holds and for nothing else, unless it holds nothing.

        Raises:
            CheckpointError: a tensor is missing or has another size.
        """
        ...

    def full_parameters(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named parameters as full tensors in the model's dtype, on every rank; experts are gathered one parameter at a time."""
        ...

    def whole_weights(self) -> AbstractContextManager[None]:
        """Inside, every parameter is whole, experts of other ranks apart, and modules can be called by each rank as it likes.

        For generation beside training. Collective at both ends; the weights must not be changed inside.
        """
        ...
