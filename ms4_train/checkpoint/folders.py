"""The checkpoints of one run: what their folders are called, which of them count, and who may write there.

``<output_dir>/checkpoints/step-000123`` is a committed checkpoint. Everything else in that folder is marked by its name: ``.tmp-*`` was
being written when a process died and is swept at the next start, ``*.quarantine`` failed its sums, ``*.superseded`` belongs to a
run that was restarted from an earlier step. Exercise it: ``pytest tests/ms4_train/checkpoint/test_folders.py``.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from pathlib import Path

from ms4_train.errors import CheckpointError
from ms4_train.storage import fsync_folder, storage_errors

_LOG = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"
QUARANTINE_SUFFIX = ".quarantine"
SUPERSEDED_SUFFIX = ".superseded"
_STEP_NAME = re.compile(r"step-(\d{6,12})")


def step_folder_name(step: int) -> str:
    """``step-000123``; the number grows past six digits where it must."""
    return f"step-{step:06d}"


def committed_steps(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every committed checkpoint under ``root``, oldest first."""
    if not root.is_dir():
        return []
    found = [(int(match[1]), path) for path in root.iterdir() if path.is_dir() and (match := _STEP_NAME.fullmatch(path.name))]
    return sorted(found)


def quarantined(root: Path) -> list[Path]:
    """Folders that failed verification."""
    return sorted(root.glob(f"step-*{QUARANTINE_SUFFIX}")) if root.is_dir() else []


def sweep_temporary(root: Path) -> list[Path]:
    """Delete what a killed process left half-written; returns what was deleted.

    Raises:
        StorageError: something cannot be deleted.
    """
    stale = sorted(root.glob(f"{TEMPORARY_PREFIX}*")) if root.is_dir() else []
    for path in stale:
        with storage_errors(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return stale


def quarantine(folder: Path) -> Path:
    """Rename a corrupt checkpoint so that it is never taken for a good one, and keep it for inspection."""
    return _set_name(folder, folder.with_name(folder.name + QUARANTINE_SUFFIX))


def set_aside_later(root: Path, step: int) -> list[Path]:
    """Rename checkpoints after ``step``: a run that goes on from ``step`` must not be continued later from another run's steps."""
    later = [folder for found, folder in committed_steps(root) if found > step]
    return [_set_name(folder, folder.with_name(folder.name + SUPERSEDED_SUFFIX)) for folder in later]


def prune(root: Path, keep: int) -> list[Path]:
    """Delete all but the newest ``keep`` committed checkpoints. Call it only after a commit."""
    deleted = [folder for _, folder in committed_steps(root)[:-keep]]
    for folder in deleted:
        delete_checkpoint(folder)
    return deleted


def delete_checkpoint(folder: Path) -> None:
    """Delete a folder. It is renamed to a temporary name first, so that a crash in the middle leaves nothing that looks committed.

    Raises:
        StorageError: it cannot be renamed.
    """
    doomed = folder
    if not folder.name.startswith(TEMPORARY_PREFIX):
        doomed = _set_name(folder, folder.with_name(TEMPORARY_PREFIX + folder.name))
    shutil.rmtree(doomed, ignore_errors=True)


def _set_name(folder: Path, target: Path) -> Path:
    with storage_errors(folder):
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
        fsync_folder(folder.parent)
    return target


class FolderLock:
    """Keeps a second run out of an output folder. The system releases it when the process ends, however it ends.

    Raises:
        CheckpointError: another live process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise CheckpointError(
                "another run is writing to this folder.", file=folder, key="output_dir", fix="wait for it to end, or choose another folder."
            ) from None
        except OSError as error:  # some network file systems have no locks; training there is still better than not training
            _LOG.warning("%s cannot be locked (%s); make sure that no second run writes to it.", folder, error.strerror)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let other runs in. Calling it twice does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
