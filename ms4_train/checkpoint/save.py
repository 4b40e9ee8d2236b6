"""Writing run state in the background: every rank its own part, a manifest when all parts are on the disk, then a rename.

``save`` copies this rank's state to host memory and returns; a thread writes and flushes the files while training goes on. A save that is
to be waited for makes no copy: the thread writes the live state, which stands still meanwhile. What concerns all ranks happens in the main
thread, at the boundary of a step: ranks tell each other how their writing stands (``status``, ``settle``), and when all are done the main
rank commits. With one process the thread commits by itself.

At any moment of a crash the newest committed checkpoint is whole: files are flushed before the manifest, the manifest before the rename,
and older checkpoints are deleted only after it. At most one save is in flight. A failure of any rank is raised on every rank at the next
boundary. Exercise it: ``pytest tests/ms4_train/checkpoint/test_save.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ms4_train.checkpoint.folders import TEMPORARY_PREFIX, prune, step_folder_name
from ms4_train.checkpoint.manifest import FileSum, Manifest, canonical_json, write_manifest, write_synced
from ms4_train.checkpoint.part import SHARD_BYTES, HeldPart
from ms4_train.checkpoint.writer import PartWriter
from ms4_train.errors import CheckpointError, DiskFullError, MS4Error, StorageError
from ms4_train.parallel import Mesh, TrainEngine, progress
from ms4_train.storage import fsync_folder, require_free_bytes, storage_errors

_LOG = logging.getLogger(__name__)

STATE_NAME = "state.json"


def places(mesh: Mesh, zero_stage: int) -> dict[str, int]:
    """What a checkpoint says of the ranks that wrote it."""
    return {
        "world_size": mesh.world_size,
        "expert_parallel_size": mesh.expert_parallel_size,
        "zero_stage": zero_stage if mesh.world_size > 1 else 0,
    }


class RunStateSaver:
    """Commits checkpoints of one run. All ranks make one and call it alike; ``abandon`` and ``status`` alone are not collective.

    As a context manager it leaves no half-written folder and no thread behind, however the block ends. A save in flight is finished, unless
    the process is told to end at once, or a rank fails alone: the others cannot be asked then, and the save is given up.

    Args:
        root: folder of the run's checkpoints; made when missing.
        engine: its parameters and optimizer state are written, each rank what it owns.
        expected_bytes: size of a checkpoint over all ranks, checked against the free space before anything is written.
        keep: committed checkpoints to keep; older ones are deleted after a commit.
        config: the whole resolved configuration of the run, as JSON values.
        zero_stage: of the run.
        background: whether ``save`` returns while files are being written, from a copy; False waits for them, and makes none.
        go_on: whether a full or failing disk is only warned about. The newest save must succeed all the same before ``finish`` returns.
        shard_bytes: a new safetensors file is begun when one reaches this size.
    """

    def __init__(
        self,
        root: Path,
        engine: TrainEngine,
        *,
        expected_bytes: int,
        keep: int,
        config: Mapping[str, Any],
        zero_stage: int = 0,
        background: bool = True,
        go_on: bool = False,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._root, self._engine, self._mesh = root, engine, engine.mesh
        self._expected_bytes, self._keep, self._shard_bytes = expected_bytes, keep, shard_bytes
        self._config = dict(config)
        self._places = places(self._mesh, zero_stage)
        self._background, self._go_on = background, go_on
        self._save: _Save | None = None
        self._failure: MS4Error | None = None

    def __enter__(self) -> RunStateSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        if self._save is None:
            return
        if value is None:
            self.finish()
            return
        on_all_ranks = isinstance(value, MS4Error) and value.on_all_ranks
        at_once = not isinstance(value, Exception) or (isinstance(value, MS4Error) and value.code == "interrupted" and not on_all_ranks)
        try:
            if not at_once and (on_all_ranks or self._mesh.world_size == 1):
                self.finish()
        except MS4Error as error:  # the error that ends the run is the one to be seen
            _LOG.warning("the save in flight failed too: %s", error)
        finally:
            self.abandon()

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Begin to commit a checkpoint after ``step`` optimizer steps; parameters may change when this returns. Collective.

        An earlier save is waited for first. A checkpoint of this step that is there already is kept as it is.

        Args:
            step: optimizer steps done.
            state: JSON values that are the same for all ranks (loader, identity, tracking); the main rank's copy is written.

        Returns:
            The folder that it is or will be in.

        Raises:
            StorageError: the disk is full or cannot be written, on any rank, for this save or the earlier one; older checkpoints are
                untouched and the partial one is removed.
            CheckpointError: the writing of another rank failed in another way.
        """
        progress.at("save", step)
        self._complete()
        save = _Save(step, self._root, self._mesh)
        try:
            is_there = _together(self._mesh, lambda: self._begin(save, state) if self._mesh.is_main else False)[0]
        except MS4Error as error:
            self._failed(error)
            return save.target
        self._failure = None
        if is_there:
            return save.target
        commit = save.commit if self._mesh.world_size == 1 else None
        take = HeldPart.copy_of if self._background else HeldPart.live_in
        try:
            save.writer = PartWriter(save.temporary, lambda: take(self._engine), shard_bytes=self._shard_bytes, then=commit)
        except BaseException:
            if self._mesh.is_main:
                shutil.rmtree(save.temporary, ignore_errors=True)
            raise
        self._save = save
        if not self._background:
            self._complete()
        return save.target

    def status(self) -> dict[str, Any] | None:
        """How this rank's writing stands, for ``settle``: JSON values of a few bytes; None where nothing is in flight."""
        return None if self._save is None else self._save.status()

    def settle(self, statuses: Sequence[Any]) -> None:
        """Draw the consequences: commit when every rank has written its part, clean up when one has failed. Collective.

        Args:
            statuses: what ``status`` gave on every rank, in the order of ranks.

        Raises:
            StorageError, CheckpointError: as ``save``; not where only a warning was asked for.
        """
        save = self._save
        if save is None:
            return
        failed = [(rank, status) for rank, status in enumerate(statuses) if status["state"] == "failed"]
        if failed:
            # Every rank raises its own error where it has one, else one that names the rank that failed.
            self._give_up(save.writer.error or _error_of_rank(*failed[0]))
        elif all(status["state"] == "written" for status in statuses):
            try:
                self._commit(save)
            except MS4Error as error:
                self._give_up(error)
            else:
                self._save = None

    def finish(self) -> None:
        """Wait for the save in flight and commit it; the newest save is on the disk when this returns. Collective.

        Raises:
            StorageError, CheckpointError: as ``save``, also where only a warning was asked for before.
        """
        self._complete()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """Stop writing and delete what was written of the save in flight. Not collective."""
        save, self._save = self._save, None
        if save is None:
            return
        save.writer.cancel()
        # With one process the thread commits. One that is slow may be at it: taking files away now would spoil the checkpoint that it is
        # about to name. What it leaves where it does not get there is swept at the next start.
        may_commit = self._mesh.world_size == 1 and save.writer.is_writing
        if self._mesh.is_main and not may_commit:
            # A rank that still writes can make no new folder, so what it leaves is swept at the next start at the latest.
            shutil.rmtree(save.temporary, ignore_errors=True)

    def _begin(self, save: _Save, state: Mapping[str, Any]) -> bool:
        """Whether the checkpoint is there already; else its folder is made, and what the main rank adds is kept ready."""
        if save.target.is_dir():
            return True
        require_free_bytes(self._root, self._expected_bytes)
        is_first = not self._root.is_dir()
        with storage_errors(save.temporary):
            shutil.rmtree(save.temporary, ignore_errors=True)
            save.temporary.mkdir(parents=True)
            if is_first:  # else a power cut could take the folder of a committed checkpoint
                fsync_folder(self._root.parent)
        # As text now: what it is made of changes when training goes on.
        content = {"step": save.step, "world_size": self._mesh.world_size, "mesh": self._places, "config": self._config, **state}
        save.state = canonical_json(content)
        save.manifest = Manifest(save.step, {}, self._places, hashlib.sha256(canonical_json(self._config)).hexdigest(), versions())
        save.keep = self._keep
        return False

    def _complete(self) -> None:
        if self._save is not None:
            self._save.writer.wait()
            self.settle(self._mesh.all_gather_json(self.status()))

    def _commit(self, save: _Save) -> None:
        if self._mesh.world_size == 1:
            return
        parts = self._mesh.all_gather_json({name: asdict(item) for name, item in save.writer.sums.items()})
        files = {name: FileSum(**item) for part in parts for name, item in part.items()}
        _together(self._mesh, lambda: save.commit(files) if self._mesh.is_main else None)

    def _give_up(self, error: MS4Error) -> None:
        assert self._save is not None
        self._save.writer.cancel()
        self._mesh.barrier()  # no rank writes any more, so the folder can go
        self.abandon()
        self._failed(error)

    def _failed(self, error: MS4Error) -> None:
        error.on_all_ranks = True
        self._failure = error
        if not (self._go_on and isinstance(error, StorageError)):
            raise error
        if self._mesh.is_main:
            _LOG.warning("run state was not saved: %s The run goes on, as training.on_save_error asks.", error)


class _Save:
    """One save from its beginning to its end. ``state``, ``manifest`` and ``keep`` are set on the main rank."""

    writer: PartWriter
    state: bytes
    manifest: Manifest
    keep: int

    def __init__(self, step: int, root: Path, mesh: Mesh) -> None:
        self.step, self._mesh = step, mesh
        self.target = root / step_folder_name(step)
        self.temporary = root / f"{TEMPORARY_PREFIX}{self.target.name}"

    def status(self) -> dict[str, Any]:
        if self.writer.is_writing:
            return {"state": "writing"}
        error = self.writer.error
        if error is None:
            return {"state": "written"}
        return {"state": "failed", **_described(error)}

    def commit(self, files: Mapping[str, FileSum]) -> None:
        """Make the folder a checkpoint, and delete old ones. Every part is on the disk.

        Raises:
            StorageError: as ``save``.
        """
        with storage_errors(self.target, len(self.state)):
            own = {STATE_NAME: write_synced(self.temporary / STATE_NAME, self.state)}
            manifest = self.manifest
            write_manifest(
                self.temporary,
                Manifest(manifest.step, {**files, **own}, manifest.mesh, manifest.configuration_sha256, manifest.versions),
            )
            fsync_folder(self.temporary)
            self.temporary.rename(self.target)
            fsync_folder(self.target.parent)
        try:
            prune(self.target.parent, self.keep)
        except StorageError as error:  # the checkpoint is there all the same
            _LOG.warning("an old checkpoint cannot be deleted: %s", error)


def _described(error: MS4Error) -> dict[str, str]:
    kind = "full" if isinstance(error, DiskFullError) else "storage" if isinstance(error, StorageError) else "other"
    return {"kind": kind, "error": str(error)}


def _error_of_rank(rank: int, described: Mapping[str, str]) -> MS4Error:
    kinds = {"full": DiskFullError, "storage": StorageError, "other": CheckpointError}
    return kinds[described["kind"]](f"rank {rank} could not save: {described['error']}")


def _together(mesh: Mesh, work: Callable[[], Any]) -> list[Any]:
    """Run ``work`` on every rank and give every rank all results, JSON values; an error of one is raised on all.

    Raises:
        MS4Error: of this rank, or one that names the rank that failed.
    """
    failure: MS4Error | None = None
    result: Any = None
    try:
        result = work()
    except MS4Error as error:
        failure = error
    reports = mesh.all_gather_json({"failure": None if failure is None else _described(failure), "result": result})
    if failure is not None:
        raise failure
    for rank, report in enumerate(reports):
        if report["failure"] is not None:
            raise _error_of_rank(rank, report["failure"])
    return [report["result"] for report in reports]


def versions() -> dict[str, str | None]:
    """Versions of the programs that decide what a checkpoint means; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("ms4-train", "torch", "deepspeed"):
        found[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
