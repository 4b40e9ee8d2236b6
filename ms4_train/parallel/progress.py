"""Where this process is: its phase and step, for whoever watches the ranks of a run.

A phase is entered by a plain call from anywhere below the loop, so nothing has to be passed down. It costs well under a microsecond
without a listener. Exercise it: ``pytest tests/ms4_train/parallel/test_progress.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

PHASES = ("start", "load", "data", "forward", "backward", "optimizer", "validation", "generation", "save", "export", "end")


@dataclass(frozen=True)
class Place:
    """A phase, the optimizer step it belongs to (counted from 1; 0 before the first), and how many phases were entered before it."""

    phase: str
    step: int
    count: int

    def __str__(self) -> str:
        return f"{self.phase} of step {self.step}" if self.step else self.phase


_place = Place("start", 0, 0)
_listener: Callable[[Place], None] | None = None


def at(phase: str, step: int | None = None) -> None:
    """Enter a phase; entering the same one again says that it gets on.

    Args:
        phase: one of ``PHASES``.
        step: optimizer step; default: the one of before.
    """
    global _place
    assert phase in PHASES, phase
    _place = Place(phase, _place.step if step is None else step, _place.count + 1)
    if _listener is not None:
        _listener(_place)


def loaded(done: int, total: int) -> None:
    """Say that reading gets on: a callback of ``load_model``, for a large model takes longer to read than a rank may be silent.

    Args:
        done: bytes read.
        total: bytes to read.
    """
    at("load")


def here() -> Place:
    """The place of now."""
    return _place


def listen(listener: Callable[[Place], None] | None) -> Callable[[Place], None] | None:
    """Call ``listener`` at every entry, in the thread that enters, in the place of the earlier one, which is returned."""
    global _listener
    earlier, _listener = _listener, listener
    return earlier
