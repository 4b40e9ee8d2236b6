"""Writing run state: every rank its own part, a manifest when all parts are on the disk, then a rename.

At any moment of a crash the newest committed checkpoint is whole: files are flushed before the manifest, the manifest before the rename,
and older checkpoints are deleted only after it. Exercise it: ``pytest tests/ms4_train/checkpoint/test_save.py``.

Parts of rank r: ``rank-0000r-00n.safetensors`` (keys ``weight:NAME``, ``exp_avg:NAME``, ``exp_avg_sq:NAME``) and ``rank-0000r.json``
(where each parameter's rows lie, and the random state). ``state.json`` holds what is the same for all ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from ms4_train.checkpoint.folders import TEMPORARY_PREFIX, prune, step_folder_name
from ms4_train.checkpoint.manifest import FileSum, canonical_json, write_manifest, write_synced
from ms4_train.checkpoint.random_state import capture_random_state
from ms4_train.errors import StorageError
from ms4_train.parallel import Mesh, ParameterState, TrainEngine
from ms4_train.storage import fsync_folder, require_free_bytes, storage_errors

STATE_NAME = "state.json"
SHARD_BYTES = 1 << 30
BYTES_PER_PARAMETER = 12
"""Master weight and two moments, fp32 each."""
SPARE_BYTES = 1 << 20
"""Headers, random state and JSON of one checkpoint."""


def rank_name(rank: int) -> str:
    """Stem of one rank's files."""
    return f"rank-{rank:05d}"


def checkpoint_bytes(trained_parameters: int) -> int:
    """Disk space of one checkpoint of that many trained parameters, over all ranks."""
    return trained_parameters * BYTES_PER_PARAMETER + SPARE_BYTES


def save_run_state(
    root: Path, engine: TrainEngine, *, step: int, state: dict[str, Any], expected_bytes: int, keep: int, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Commit a checkpoint after ``step`` optimizer steps. Collective.

    Args:
        root: folder of the run's checkpoints; made when missing.
        engine: its parameters and optimizer state are written, each rank what it owns.
        step: optimizer steps done.
        state: JSON values that are the same for all ranks (loader, identity, tracking); the main rank's copy is written.
        expected_bytes: size over all ranks, checked against the free space before anything is written.
        keep: committed checkpoints to keep; older ones are deleted after the commit.
        shard_bytes: a new safetensors file is begun when the pending tensors reach this size.

    Returns:
        The committed folder. A checkpoint of this step that is there already is kept as it is.

    Raises:
        StorageError: the disk is full or cannot be written, on any rank; older checkpoints are untouched and the partial one is removed.
    """
    mesh = engine.mesh
    target = root / step_folder_name(step)
    temporary = root / f"{TEMPORARY_PREFIX}{target.name}"
    if mesh.all_reduce_sum(float(mesh.is_main and target.is_dir())) > 0:
        return target
    try:
        _together(mesh, lambda: _begin(temporary, expected_bytes) if mesh.is_main else None)
        parts = _together(mesh, _part_writer(temporary, engine, shard_bytes))
        _together(
            mesh,
            lambda: (
                _commit(temporary, target, step, {"step": step, "world_size": mesh.world_size, **state}, parts) if mesh.is_main else None
            ),
        )
    except BaseException:
        if mesh.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if mesh.is_main:
        prune(root, keep)
    mesh.barrier()
    return target


def _begin(temporary: Path, expected_bytes: int) -> None:
    require_free_bytes(temporary.parent, expected_bytes)
    with storage_errors(temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)


def _part_writer(temporary: Path, engine: TrainEngine, shard_bytes: int) -> Callable[[], dict[str, Any]]:
    """One rank's share of the work. ``export_state`` is collective, so a rank that cannot write still walks through it to the end."""

    def write() -> dict[str, Any]:
        part = _PartWriter(temporary, engine.mesh.rank, shard_bytes)
        failure: StorageError | None = None
        for parameter in engine.export_state():
            if failure is None and parameter.is_owner:
                try:
                    part.add(parameter)
                except StorageError as error:
                    failure = error
        if failure is not None:
            raise failure
        return {name: asdict(item) for name, item in part.finish().items()}

    return write


def _commit(temporary: Path, target: Path, step: int, state: dict[str, Any], parts: Iterable[dict[str, Any]]) -> None:
    files = {name: FileSum(**item) for part in parts for name, item in part.items()}
    with storage_errors(target):
        files[STATE_NAME] = write_synced(temporary / STATE_NAME, canonical_json(state))
        write_manifest(temporary, step, files)
        fsync_folder(temporary)
        temporary.rename(target)
        fsync_folder(target.parent)


def _together(mesh: Mesh, work: Callable[[], Any]) -> list[Any]:
    """Run ``work`` on every rank and give every rank all results; a storage failure of one is raised on all."""
    failure: StorageError | None = None
    result: Any = None
    try:
        result = work()
    except StorageError as error:
        failure = error
    reports = mesh.all_gather_json({"error": None if failure is None else str(failure), "result": result})
    if failure is not None:
        raise failure
    for rank, report in enumerate(reports):
        if report["error"] is not None:
            raise StorageError(f"rank {rank} could not save: {report['error']}")
    return [report["result"] for report in reports]


class _PartWriter:
    """Collects one rank's tensors and writes them in files of bounded size, so that memory holds one file's worth at a time."""

    def __init__(self, folder: Path, rank: int, shard_bytes: int) -> None:
        self._folder, self._rank, self._shard_bytes = folder, rank, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._sums: dict[str, FileSum] = {}
        self._places: dict[str, dict[str, Any]] = {}

    def add(self, parameter: ParameterState) -> None:
        for kind, tensor in parameter.tensors.items():
            # A copy: what is exported may be a view of live state, and files are written later.
            copied = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
            self._pending[f"{kind}:{parameter.name}"] = copied
            self._pending_bytes += copied.numel() * copied.element_size()
        self._places[parameter.name] = {
            "file": self._file_name(),
            "shape": list(parameter.full_shape),
            "offset": parameter.offset,
            "step": parameter.step,
        }
        if self._pending_bytes >= self._shard_bytes:
            self._flush()

    def finish(self) -> dict[str, FileSum]:
        """Write what is left, then this rank's JSON file; returns the sums of all files written."""
        if self._pending:
            self._flush()
        name = f"{rank_name(self._rank)}.json"
        content = {"rank": self._rank, "parameters": self._places, "random": capture_random_state()}
        with storage_errors(self._folder):
            self._sums[name] = write_synced(self._folder / name, canonical_json(content))
        return self._sums

    def _file_name(self) -> str:
        return f"{rank_name(self._rank)}-{len(self._sums):03d}.safetensors"

    def _flush(self) -> None:
        name = self._file_name()
        data = serialize(self._pending)
        with storage_errors(self._folder, len(data)):
            self._sums[name] = write_synced(self._folder / name, data)
        self._pending, self._pending_bytes = {}, 0
