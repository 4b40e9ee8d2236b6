"""What ranks tell each other at the end of a step: whether one was asked to stop, and how the writing of run state stands.

One small exchange serves both, because each costs a meeting of all ranks.
Exercise it: ``pytest tests/ms4_train/training/test_agreement.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ms4_train.parallel import Mesh
from ms4_train.training.stop import StopSignals


class Saver(Protocol):
    """What the loop asks of ``ms4_train.checkpoint.RunStateSaver``, which says what each method does."""

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Begin to save."""
        ...

    def status(self) -> dict[str, Any] | None:
        """How this rank's writing stands."""
        ...

    def settle(self, statuses: Sequence[Any]) -> None:
        """Commit, or clean up, as all ranks' statuses say."""
        ...

    def finish(self) -> None:
        """Wait for the save in flight."""
        ...


def agree(stop: StopSignals, saver: Saver | None, mesh: Mesh) -> int:
    """The signal that any rank received, the same on every rank; 0 for none. A save that is written everywhere is committed. Collective.

    Raises:
        StorageError, CheckpointError: a save failed on any rank since the last time.
    """
    reports = mesh.all_gather_json([stop.received, None if saver is None else saver.status()])
    if saver is not None:
        saver.settle([status for _, status in reports])
    return next((number for number, _ in reports if number), 0)
