"""Finding the checkpoint to resume from, and reading it: sums first, tensors only after they agree.

``auto`` takes the newest committed checkpoint; a corrupt one is renamed ``*.quarantine`` with a warning and the one before it is taken.
When all are corrupt the run stops: it never starts again from zero unasked. Ranks share out the files that are summed, and each reads only
the values that it will hold, whatever the ranks were that wrote them.
Exercise it: ``pytest tests/ms4_train/checkpoint/test_load.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ms4_train.checkpoint.folders import committed_steps, quarantine, quarantined, set_aside_later, sweep_temporary
from ms4_train.checkpoint.manifest import MANIFEST_NAME, OtherVersionError, check_step, files_of_rank, read_manifest, verify_files
from ms4_train.checkpoint.saved import SavedRun
from ms4_train.errors import CheckpointError
from ms4_train.parallel import Mesh, progress

_LOG = logging.getLogger(__name__)


def find_saved_run(root: Path, resume: str, mesh: Mesh) -> SavedRun | None:
    """The checkpoint to go on from, verified; None when the run starts at step 0. Collective.

    Also sweeps what killed processes left under ``root``. Good checkpoints stay as they are, whatever is chosen: ``restart_after`` sets
    later ones aside when the run really begins.

    Args:
        root: the run's own checkpoint folder.
        resume: ``auto``, ``never``, or a checkpoint folder.
        mesh: the main rank searches; all ranks verify a part of what it finds.

    Raises:
        CheckpointError: the named folder is not a good checkpoint, every checkpoint of an ``auto`` run is corrupt, or the newest one was
            written by another version of this program.
    """
    _on_main(mesh, lambda: _sweep(root))
    if resume == "never":
        return None
    if resume != "auto":
        folder = _on_main(mesh, lambda: _named(root, resume))
        if error := _verify(Path(folder), None, mesh):
            raise error
        return SavedRun.open(Path(folder))
    while (candidate := _on_main(mesh, lambda: _newest(root))) is not None:
        step, folder = candidate
        error = _verify(Path(folder), step, mesh)
        if error is None:
            return SavedRun.open(Path(folder))
        if isinstance(error, OtherVersionError):
            raise error
        if mesh.is_main:
            _set_aside(Path(folder), error)
    return None


def _on_main(mesh: Mesh, work: Callable[[], Any]) -> Any:
    """What ``work`` gives on the main rank, a JSON value, on every rank; a refusal of it is raised on all."""
    report: dict[str, Any] = {"value": None, "error": None}
    if mesh.is_main:
        try:
            report["value"] = work()
        except CheckpointError as error:
            if mesh.world_size == 1:
                raise
            report["error"] = str(error)
    report = mesh.all_gather_json(report)[0]
    if report["error"] is not None:
        raise _on_all_ranks(CheckpointError(report["error"]))
    return report["value"]


def _verify(folder: Path, step: int | None, mesh: Mesh) -> CheckpointError | None:
    """What is wrong with a checkpoint, the same on every rank; None for nothing. Every rank sums a part of the files."""
    failure: CheckpointError | None = None
    try:
        manifest = read_manifest(folder)
        check_step(folder, manifest, step)
        for name, expected in sorted(files_of_rank(manifest.files, mesh.rank, mesh.world_size).items()):
            progress.at("load")  # together they may take longer than a rank may be silent
            verify_files(folder, {name: expected})
    except CheckpointError as error:
        failure = error
    other = isinstance(failure, OtherVersionError)
    found = mesh.all_gather_json(None if failure is None else [other, failure.message, failure.file, failure.fix])
    for report in found:
        if report is not None:
            is_other, message, file, fix = report
            return _on_all_ranks((OtherVersionError if is_other else CheckpointError)(message, file=file, fix=fix))
    return None


def _on_all_ranks(error: CheckpointError) -> CheckpointError:
    error.on_all_ranks = True
    return error


def _sweep(root: Path) -> None:
    for stale in sweep_temporary(root):
        _LOG.warning("deleted %s, which an interrupted save left behind.", stale)


def _named(root: Path, resume: str) -> str:
    chosen = Path(resume)
    key = "training.resume_from_checkpoint"
    if not chosen.is_dir():
        raise CheckpointError("there is no such checkpoint folder.", file=resume, key=key, fix=_offer(root))
    if not (chosen / MANIFEST_NAME).exists():
        raise CheckpointError(f"this folder is not a checkpoint: it holds no {MANIFEST_NAME}.", file=resume, key=key, fix=_offer(root))
    return str(chosen)


def restart_after(root: Path, step: int) -> None:
    """Set aside the checkpoints that a run going on from ``step`` (0: from the beginning) will not come from.

    Call it on the main rank when nothing can refuse the run any more: after a refusal, the run it belongs to must find them all.
    """
    for aside in set_aside_later(root, step):
        _LOG.warning("this run restarts before an earlier run's checkpoint, which is now %s.", aside)


def _newest(root: Path) -> tuple[int, str] | None:
    steps = committed_steps(root)
    if steps:
        step, folder = steps[-1]
        return step, str(folder)
    if corrupt := quarantined(root):
        raise CheckpointError(
            f"no good checkpoint is left; {len(corrupt)} corrupt one{'s are' if len(corrupt) > 1 else ' is'} kept for inspection.",
            file=root,
            fix="start again with training.resume_from_checkpoint=never, or name a folder that is good.",
        )
    return None


def _set_aside(folder: Path, error: CheckpointError) -> None:
    moved = quarantine(folder)
    _LOG.warning("%s: %s It is kept as %s, and the checkpoint before it is tried.", error.file, error.message, moved.name)


def _offer(root: Path) -> str:
    steps = committed_steps(root)
    return f"name one of {', '.join(str(path) for _, path in steps)}." if steps else "use auto or never."
