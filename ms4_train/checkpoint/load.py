"""Finding the checkpoint to resume from, and reading it: sums first, tensors only after they agree.

``auto`` takes the newest committed checkpoint; a damaged one is renamed ``*.quarantine`` with a warning and the one before it is taken. One
that cannot be read, or that not all machines see, ends the start and stays as it is (``verdict``). When all are damaged the run stops: it
never starts again from zero unasked. Ranks share out the files that are summed, and each reads only the values that it will hold,
whatever the ranks were that wrote them. Exercise it: ``pytest tests/ms4_train/checkpoint/test_load.py``.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ms4_train.checkpoint.folders import QUARANTINE_SUFFIX, committed_steps, quarantine, quarantined, set_aside_later, sweep_temporary
from ms4_train.checkpoint.manifest import MANIFEST_NAME, DamagedError, is_absence, read_manifest
from ms4_train.checkpoint.requeue import began_at, note_beginning
from ms4_train.checkpoint.saved import SavedRun
from ms4_train.checkpoint.verdict import unseen, verdict
from ms4_train.errors import CheckpointError, StorageError
from ms4_train.parallel import Mesh

_LOG = logging.getLogger(__name__)
_KEY = "training.resume_from_checkpoint"


def find_saved_run(root: Path, resume: str, mesh: Mesh) -> SavedRun | None:
    """The checkpoint to go on from, verified; None when the run starts at step 0. Collective.

    Also sweeps what killed processes left under ``root``. Good checkpoints stay as they are, whatever is chosen: ``restart_after`` sets
    later ones aside when the run really begins. A job that its scheduler started again goes on from the newest checkpoint that it wrote
    itself, whatever ``resume`` says: where to begin was said for its first start.

    Args:
        root: the run's own checkpoint folder.
        resume: ``auto``, ``never``, or a checkpoint folder.
        mesh: the main rank searches; all ranks verify a part of what it finds.

    Raises:
        CheckpointError: the named folder is not a good checkpoint, every checkpoint of an ``auto`` run is damaged, the newest one cannot
            be read, is not seen by all ranks, or was written by another version of this program.
        StorageError: the folder cannot be listed or changed.
    """
    _on_main(mesh, lambda: _sweep(root))
    if resume == "auto":
        saved = _newest_good(mesh, lambda: _newest(root))
        if saved is None:
            _require_none_elsewhere(root, mesh)
        return saved
    if (own := _newest_good(mesh, lambda: _newest_of_this_job(root))) is not None:
        if mesh.is_main:
            _LOG.warning(
                "this job was started again by its scheduler and goes on from its own %s; %s=%s is for its first start, or for a new job.",
                *(own.folder, _KEY, resume),
            )
        return own
    if resume == "never":
        return None
    folder = Path(_on_main(mesh, lambda: _named(root, resume)))
    if error := verdict(folder, None, mesh):
        raise error
    return SavedRun.open(folder)


def _newest_good(mesh: Mesh, candidate: Callable[[], tuple[int, str] | None]) -> SavedRun | None:
    """The first good one of what ``candidate`` gives on the main rank; damaged ones are set aside, so that it gives the next."""
    while (found := _on_main(mesh, candidate)) is not None:
        step, folder = found[0], Path(found[1])
        error = verdict(folder, step, mesh)
        if error is None:
            return SavedRun.open(folder)
        if not isinstance(error, DamagedError):
            raise error
        _on_main(mesh, lambda folder=folder, error=error: _set_aside(folder, error))
    return None


def _on_main(mesh: Mesh, work: Callable[[], Any]) -> Any:
    """What ``work`` gives on the main rank, a JSON value, on every rank; a refusal of it is raised on all."""
    report: dict[str, Any] = {"value": None, "error": None}
    if mesh.is_main:
        try:
            report["value"] = work()
        except (CheckpointError, StorageError) as error:
            if mesh.world_size == 1:
                raise
            report["error"] = [isinstance(error, StorageError), str(error)]
    report = mesh.all_gather_json(report)[0]
    if report["error"] is not None:
        of_storage, text = report["error"]
        raised = (StorageError if of_storage else CheckpointError)(text)
        raised.on_all_ranks = True
        raise raised
    return report["value"]


def _require_none_elsewhere(root: Path, mesh: Mesh) -> None:
    """Refuse to begin at step 0 where the main rank alone sees no checkpoints. Collective.

    Raises:
        CheckpointError: another rank sees one.
    """
    if mesh.world_size == 1:
        return
    reports = mesh.all_gather_json([socket.gethostname(), None if mesh.is_main else _seen(root)])
    for rank, (host, folder) in enumerate(reports):
        if folder is not None:
            error = unseen([report[0] for report in reports], [0], f"not see this checkpoint; rank {rank} (host {host}) does", folder)
            error.on_all_ranks = True
            raise error


def _seen(root: Path) -> str | None:
    """The newest checkpoint whose manifest can be read: a listing of a network folder may be of a moment ago."""
    try:
        for _, folder in reversed(committed_steps(root)):
            read_manifest(folder)
            return str(folder)
    except (CheckpointError, StorageError):
        pass
    return None


def _sweep(root: Path) -> None:
    for stale in sweep_temporary(root):
        _LOG.warning("deleted %s, which an interrupted save left behind.", stale)


def _named(root: Path, resume: str) -> str:
    chosen = Path(resume)
    for path in (chosen, chosen / MANIFEST_NAME):
        try:
            path.stat()
        except OSError as error:
            if not is_absence(error):
                what = f"the checkpoint cannot be read: {error.strerror or error}. It was not renamed."
            elif path == chosen:
                what = "there is no such checkpoint folder."
            else:
                what = f"this folder is not a checkpoint: it holds no {MANIFEST_NAME}."
            raise CheckpointError(what, file=resume, key=_KEY, fix=_offer(root)) from error
    return str(chosen)


def restart_after(root: Path, step: int) -> None:
    """Set aside the checkpoints that a run going on from ``step`` (0: from the beginning) will not come from.

    Call it on the main rank when nothing can refuse the run any more: after a refusal, the run it belongs to must find them all.
    """
    for aside in set_aside_later(root, step):
        _LOG.warning("this run restarts before an earlier run's checkpoint, which is now %s.", aside)
    note_beginning(root, step)


def _newest(root: Path) -> tuple[int, str] | None:
    steps = committed_steps(root)
    if steps:
        step, folder = steps[-1]
        return step, str(folder)
    if corrupt := quarantined(root):
        raise CheckpointError(
            f"no good checkpoint is left; {len(corrupt)} corrupt one{'s are' if len(corrupt) > 1 else ' is'} kept for inspection.",
            file=root,
            fix=f"`ms4 checkpoint verify {corrupt[-1]}` checks one, and one that is whole can be renamed back (its name without "
            f"{QUARANTINE_SUFFIX} and what follows); or start again with {_KEY}=never, or name a folder that is good.",
        )
    return None


def _newest_of_this_job(root: Path) -> tuple[int, str] | None:
    """The newest checkpoint that this job wrote, where its scheduler started it again."""
    began = began_at(root)
    own = [] if began is None else [found for found in committed_steps(root) if found[0] > began]
    return (own[-1][0], str(own[-1][1])) if own else None


def _set_aside(folder: Path, error: CheckpointError) -> None:
    moved = quarantine(folder)
    _LOG.warning("%s: %s It is kept as %s, and the checkpoint before it is tried.", error.file, error.message, moved.name)


def _offer(root: Path) -> str:
    steps = committed_steps(root)
    return f"name one of {', '.join(str(path) for _, path in steps)}." if steps else "use auto or never."
