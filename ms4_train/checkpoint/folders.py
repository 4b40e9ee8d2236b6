"""The checkpoints of one run: what their folders are called, which of them count, and who may write there.

``<output_dir>/checkpoints/step-000123`` is a committed checkpoint. Everything else in that folder is marked by its name: ``.tmp-*`` was
being written when a process died and is swept at the next start, ``*.quarantine`` failed its sums, ``*.superseded`` belongs to a
run that was restarted from an earlier step. Where a step was set aside before, the next one is ``*.superseded-2`` and so on: what was a
checkpoint is deleted only by pruning. Exercise it: ``pytest tests/ms4_train/checkpoint/test_folders.py``.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import re
import shutil
from pathlib import Path

from ms4_train.errors import CheckpointError, StorageError
from ms4_train.storage import fsync_folder, storage_errors

_LOG = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"
QUARANTINE_SUFFIX = ".quarantine"
SUPERSEDED_SUFFIX = ".superseded"
_STEP_NAME = re.compile(r"step-(\d{6,12})")
_ASIDE_NAME = re.compile(rf"step-(\d{{6,12}})({re.escape(QUARANTINE_SUFFIX)}|{re.escape(SUPERSEDED_SUFFIX)})(?:-(\d{{1,9}}))?")


def step_folder_name(step: int) -> str:
    """``step-000123``; the number grows past six digits where it must."""
    return f"step-{step:06d}"


def committed_steps(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every committed checkpoint under ``root``, oldest first; none where ``root`` is not there.

    Raises:
        StorageError: ``root`` cannot be listed. That is not the same as an empty one, from which a run would begin at step 0.
    """
    return sorted((int(match[1]), root / match[0]) for match in _folders(root, _STEP_NAME))


def quarantined(root: Path) -> list[Path]:
    """Folders that failed verification, by step."""
    return _set_aside(root, QUARANTINE_SUFFIX)


def superseded(root: Path) -> list[Path]:
    """Folders of a run that was restarted from an earlier step, by step."""
    return _set_aside(root, SUPERSEDED_SUFFIX)


def aside_suffix(name: str) -> str | None:
    """``QUARANTINE_SUFFIX`` or ``SUPERSEDED_SUFFIX`` for the name of a checkpoint that was set aside, numbered or not; else None."""
    match = _ASIDE_NAME.fullmatch(name)
    return match[2] if match else None


def _set_aside(root: Path, suffix: str) -> list[Path]:
    found = [(int(match[1]), int(match[3] or 1), root / match[0]) for match in _folders(root, _ASIDE_NAME) if match[2] == suffix]
    return [folder for _, _, folder in sorted(found)]


def _folders(root: Path, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    return [match for item in _items(root) if (match := pattern.fullmatch(item.name)) and item.is_dir()]


def _items(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as items:
            return list(items)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "check the disk, the mount and the permissions, and start again."
        raise StorageError(f"the checkpoints there cannot be listed ({reason}).", file=root, fix=fix) from error


def sweep_temporary(root: Path) -> list[Path]:
    """Delete what a killed process left half-written; returns what was deleted.

    Raises:
        StorageError: something cannot be deleted, or ``root`` cannot be listed.
    """
    stale = sorted(root / item.name for item in _items(root) if item.name.startswith(TEMPORARY_PREFIX))
    for path in stale:
        with storage_errors(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return stale


def quarantine(folder: Path) -> Path:
    """Rename a corrupt checkpoint so that it is never taken for a good one, and keep it for inspection."""
    return _rename(folder, _free_name(folder, QUARANTINE_SUFFIX))


def set_aside_later(root: Path, step: int) -> list[Path]:
    """Rename checkpoints after ``step``: a run that goes on from ``step`` must not be continued later from another run's steps."""
    later = [folder for found, folder in committed_steps(root) if found > step]
    return [_rename(folder, _free_name(folder, SUPERSEDED_SUFFIX)) for folder in later]


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
        doomed = folder.with_name(TEMPORARY_PREFIX + folder.name)
        with storage_errors(doomed):
            if doomed.exists():  # half-written or half-deleted, for so is what has such a name
                shutil.rmtree(doomed)
        _rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _free_name(folder: Path, suffix: str) -> Path:
    """The folder with ``suffix``, and with a number behind it where that is taken: both hold states of a run."""
    name = folder.with_name(folder.name + suffix)
    for number in itertools.count(2):
        if not os.path.lexists(name):
            break
        name = folder.with_name(f"{folder.name}{suffix}-{number}")
    return name


def _rename(folder: Path, target: Path) -> Path:
    with storage_errors(folder):
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
