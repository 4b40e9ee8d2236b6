"""What a tracker is, and several of them behind one.

Exercise it: ``pytest tests/ms4_train/tracking/test_base.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

Metrics = Mapping[str, float | int | str]


class Tracker(Protocol):
    """Somewhere metrics go."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Record metrics of a step; several calls may name the same step."""
        ...

    def summary(self, metrics: Metrics) -> None:
        """Record the results of the whole run."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON values that run state keeps, so that a resumed run goes on where this one was.

        Everything logged so far is on the disk when this returns.
        """
        ...

    def close(self) -> None:
        """Flush and release; called once, also after a failure."""
        ...


class Trackers:
    """Hands every call to all trackers. Satisfies ``Tracker``; without trackers (ranks other than the main one) it does nothing."""

    def __init__(self, trackers: Iterable[Tracker] = ()) -> None:
        self._trackers = list(trackers)

    def log(self, step: int, metrics: Metrics) -> None:
        """Record metrics of a step everywhere."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def summary(self, metrics: Metrics) -> None:
        """Record the results of the run everywhere."""
        for tracker in self._trackers:
            tracker.summary(metrics)

    def state(self) -> dict[str, Any]:
        """The states of all trackers, merged; their keys do not overlap."""
        merged: dict[str, Any] = {}
        for tracker in self._trackers:
            merged.update(tracker.state())
        return merged

    def close(self) -> None:
        """Close all, the last opened first; one that fails does not keep the others open.

        Raises:
            Exception: the first failure, after all were closed.
        """
        failure: Exception | None = None
        for tracker in reversed(self._trackers):
            try:
                tracker.close()
            except Exception as error:
                failure = failure or error
        self._trackers = []
        if failure is not None:
            raise failure
