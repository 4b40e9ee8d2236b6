"""Run state: written in the background, atomic, verified, resumable on another number of ranks and another mesh.

Names are imported when they are first used, because looking at a run's checkpoints needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms4_train.checkpoint.folders import FolderLock
    from ms4_train.checkpoint.identity import check_same_run, other_conditions, run_identity
    from ms4_train.checkpoint.load import find_saved_run, restart_after
    from ms4_train.checkpoint.random_state import seed_everything
    from ms4_train.checkpoint.room import checkpoint_bytes, require_room
    from ms4_train.checkpoint.save import RunStateSaver, places
    from ms4_train.checkpoint.saved import SavedRun

_HOMES = {
    "FolderLock": "folders",
    "RunStateSaver": "save",
    "SavedRun": "saved",
    "check_same_run": "identity",
    "checkpoint_bytes": "room",
    "find_saved_run": "load",
    "other_conditions": "identity",
    "places": "save",
    "require_room": "room",
    "restart_after": "load",
    "run_identity": "identity",
    "seed_everything": "random_state",
}

__all__ = [
    "FolderLock",
    "RunStateSaver",
    "SavedRun",
    "check_same_run",
    "checkpoint_bytes",
    "find_saved_run",
    "other_conditions",
    "places",
    "require_room",
    "restart_after",
    "run_identity",
    "seed_everything",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
