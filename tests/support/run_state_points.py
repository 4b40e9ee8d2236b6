"""The named moments of a save, of a restart and of pruning at which a run is killed.

A point is a call on a kind of file, or on a kind of folder, of one step: before it, after it, or with half of its bytes written. What a
file is, its name says: ``files_kind``.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from support.run_state_calls import Call, Watcher

KINDS = {
    r"rank-\d{5}-\d+\.safetensors": "tensors",
    r"rank-\d{5}\.json": "rank file",
    r"state\.json": "state file",
    r"MANIFEST\.json": "manifest",
    r"\.tmp-step-\d+": "unfinished folder",
    r"step-\d+": "checkpoint",
    r"step-\d+\.quarantine(-\d+)?": "quarantined folder",
    r"step-\d+\.superseded(-\d+)?": "superseded folder",
    r"checkpoints": "root",
}
"""Pattern of a name -> what carries it."""


def kind_of(path: Path) -> str:
    """What a file or folder of a run's checkpoints is; its name where no pattern fits, so that a new kind does not go unseen."""
    return next((kind for pattern, kind in KINDS.items() if re.fullmatch(pattern, path.name)), path.name)


def step_of(path: Path) -> int | None:
    """The step that a path belongs to."""
    found = re.search(r"step-(\d+)", str(path))
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Point:
    """Where to die.

    ``call`` and ``on`` name the call and the kind of what it acts on; ``becomes`` the kind of a rename's target; ``step`` the checkpoint;
    ``when`` is ``before``, ``after`` or ``half`` (of a write).
    """

    call: str
    on: str
    when: str
    step: int | None = None
    becomes: str | None = None

    def fits(self, call: Call) -> bool:
        """Whether this call is the one."""
        return (
            call.kind == self.call
            and kind_of(call.path) == self.on
            and (self.step is None or step_of(call.path) in (None, self.step))
            and (self.becomes is None or (call.target is not None and kind_of(call.target) == self.becomes))
        )


class Killer(Watcher):
    """Ends this process by SIGKILL at a point, the first time that it is reached."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self._step: int | None = None

    def before(self, call: Call) -> None:
        self._step = step_of(call.path) or self._step
        if self.point.when == "before" and self._is_here(call):
            die()

    def after(self, call: Call) -> None:
        if self.point.when in ("after", "half") and self._is_here(call):
            die()

    def share(self, call: Call) -> int | None:
        return len(call.data) // 2 if self.point.when == "half" and self._is_here(call) else None

    def _is_here(self, call: Call) -> bool:
        # The root belongs to every step: what counts there is the step that was at work last.
        return self.point.fits(call) and (self.point.step is None or self._step == self.point.step)


def die() -> None:
    """End as if the power of this process were cut."""
    os.kill(os.getpid(), signal.SIGKILL)


def saving_points(step: int) -> dict[str, Point]:
    """Moments of the save of ``step``, in their order."""
    return {
        "before the first file is made": Point("create", "tensors", "before", step),
        "in half of the tensors": Point("write", "tensors", "half", step),
        "before the tensors are flushed": Point("fsync", "tensors", "before", step),
        "after the tensors are flushed": Point("fsync", "tensors", "after", step),
        "in half of the rank's file": Point("write", "rank file", "half", step),
        "before the state file is written": Point("write", "state file", "before", step),
        "before the manifest is made": Point("create", "manifest", "before", step),
        "in half of the manifest": Point("write", "manifest", "half", step),
        "before the manifest is flushed": Point("fsync", "manifest", "before", step),
        "before the folder is flushed": Point("fsync", "unfinished folder", "before", step),
        "before the rename": Point("rename", "unfinished folder", "before", step, "checkpoint"),
        "after the rename": Point("rename", "unfinished folder", "after", step, "checkpoint"),
        "after the rename is flushed": Point("fsync", "root", "after", step),
    }


def pruning_points(doomed: int) -> dict[str, Point]:
    """Moments of the deletion of the checkpoint of step ``doomed``."""
    return {
        "before pruning": Point("rename", "checkpoint", "before", doomed, "unfinished folder"),
        "pruned by name": Point("rename", "checkpoint", "after", doomed, "unfinished folder"),
        "half pruned": Point("unlink", "manifest", "after", doomed),
        "before the pruned folder goes": Point("rmdir", "unfinished folder", "before", doomed),
    }
