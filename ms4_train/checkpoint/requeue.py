"""A job that its scheduler starts again: which of the checkpoints in its folder are its own.

A job that begins to train notes its number and the step that it begins at. Checkpoints after that step are of the same job for as long as
the note is, because whatever lay after it was set aside then. So a job that ``training.resume_from_checkpoint`` sends back to the beginning
does not go there each time that it is queued again. Known is SLURM, which keeps the number of a job that it queues again, and counts.
Exercise it: ``pytest tests/ms4_train/checkpoint/test_requeue.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

from ms4_train.checkpoint.manifest import canonical_json
from ms4_train.errors import MS4Error
from ms4_train.storage import atomic_write_bytes, fsync_folder, storage_errors
from ms4_train.untrusted import parse_json, read_bytes

NOTE_NAME = ".job.json"
_MAX_BYTES = 4096


def note_beginning(root: Path, step: int) -> None:
    """Note that this job begins at ``step``, where a scheduler runs it and it has not noted it before.

    Call it when the checkpoints after ``step`` have been set aside.

    Raises:
        StorageError: it cannot be written.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or _noted_step(root, job) is not None:
        return
    with storage_errors(root):
        if not root.is_dir():
            root.mkdir(parents=True)
            fsync_folder(root.parent)  # else a power cut could take it, and with it the checkpoints to come
    atomic_write_bytes(root / NOTE_NAME, canonical_json({"job": job, "step": step}))


def began_at(root: Path) -> int | None:
    """The step that this job began at when it first trained here; None where it did not, or was not started again."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "")
    if not job or not restarts.isdecimal() or int(restarts) == 0:
        return None
    return _noted_step(root, job)


def _noted_step(root: Path, job: str) -> int | None:
    """A note that is not there or makes no sense says nothing."""
    try:
        note = parse_json(read_bytes(root / NOTE_NAME, max_bytes=_MAX_BYTES))
    except MS4Error:
        return None
    if not isinstance(note, dict) or note.get("job") != job or type(note.get("step")) is not int:
        return None
    return note["step"]
