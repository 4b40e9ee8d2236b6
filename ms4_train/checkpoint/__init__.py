"""Run state: atomic, verified, resumable on another number of ranks."""

from ms4_train.checkpoint.folders import FolderLock
from ms4_train.checkpoint.identity import check_same_run, run_identity
from ms4_train.checkpoint.load import SavedRun, find_saved_run, restart_after
from ms4_train.checkpoint.random_state import seed_everything
from ms4_train.checkpoint.save import checkpoint_bytes, save_run_state

__all__ = [
    "FolderLock",
    "SavedRun",
    "check_same_run",
    "checkpoint_bytes",
    "find_saved_run",
    "restart_after",
    "run_identity",
    "save_run_state",
    "seed_everything",
]
