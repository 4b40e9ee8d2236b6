"""Bytes that this process sends to other ranks for the experts' exchange: counted where a collective is started, read once a step.

What stays on the rank, as rows for its own experts, is not counted, nor is what the network adds. One count for the whole process, so that
nothing has to be passed down to it. Exercise it: ``pytest tests/ms4_train/parallel/test_traffic.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch

from ms4_train.parallel.mesh import Mesh

Kind = Literal["dispatch", "combine", "metadata"]


@dataclass(frozen=True)
class ExpertBytes:
    """Bytes by what they carry.

    Attributes:
        dispatch: rows from a token's rank to an expert's: hidden states, and in the backward pass gradients of the outputs.
        combine: rows from an expert's rank to a token's: outputs, and in the backward pass gradients of the hidden states.
        metadata: counts, expert ids, routing weights and their gradients, adapters of rows.
    """

    dispatch: int = 0
    combine: int = 0
    metadata: int = 0

    def __add__(self, other: ExpertBytes) -> ExpertBytes:
        """Kind by kind."""
        return ExpertBytes(self.dispatch + other.dispatch, self.combine + other.combine, self.metadata + other.metadata)


@dataclass(frozen=True)
class Traffic:
    """Bytes of forward and of backward passes; what activation checkpointing computes again is a forward pass."""

    forward: ExpertBytes = ExpertBytes()
    backward: ExpertBytes = ExpertBytes()


_counted = Traffic()


def count(kind: Kind, num_bytes: int, *, backward: bool = False) -> None:
    """Add bytes that go to other ranks."""
    global _counted
    more = ExpertBytes(**{kind: num_bytes})
    if backward:
        _counted = Traffic(_counted.forward, _counted.backward + more)
    else:
        _counted = Traffic(_counted.forward + more, _counted.backward)


def take() -> Traffic:
    """What was counted since the last call; starts again at 0."""
    global _counted
    taken, _counted = _counted, Traffic()
    return taken


def metrics(traffic: Traffic, mesh: Mesh) -> dict[str, float]:
    """``expert_bytes_dispatch``, ``expert_bytes_combine`` and ``expert_bytes_metadata``, forward and backward, summed over all ranks.

    Collective; {} without expert parallelism.
    """
    if mesh.expert_parallel_size == 1:
        return {}
    own = asdict(traffic.forward + traffic.backward)
    totals = mesh.all_reduce_sum(torch.tensor(list(own.values()), dtype=torch.int64)).tolist()
    return {f"expert_bytes_{kind}": total for kind, total in zip(own, totals, strict=True)}
