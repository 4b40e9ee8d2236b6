"""A run's checkpoints from outside: which there are, whether they are whole, and deleting what is not needed any more.

Sizes are looked at for a list; sums for a verdict. Nothing here imports torch. Exercise it: ``ms4 checkpoint list RUN``, or
``pytest tests/ms4_train/checkpoint/test_inspection.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ms4_train.checkpoint.folders import (
    QUARANTINE_SUFFIX,
    TEMPORARY_PREFIX,
    aside_suffix,
    committed_steps,
    delete_checkpoint,
    superseded,
)
from ms4_train.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    OtherVersionError,
    UnreadableError,
    check_size,
    damaged,
    read_manifest,
    verify_files,
)
from ms4_train.errors import CheckpointError, MS4Error
from ms4_train.untrusted import parse_json

State = Literal["whole", "damaged", "unreadable", "other version", "quarantined", "superseded", "left over", "being written"]
"""``whole``: the manifest and all sizes agree; only ``verify_checkpoint`` looks at sums. ``unreadable``: the system did not let it be read,
which says nothing of what it holds."""

METRICS_NAME = "metrics.jsonl"
_NAME = re.compile(rf"(?:{re.escape(TEMPORARY_PREFIX)})?step-(\d{{6,12}})(?:\.\w+(?:-\d+)?)*")
_MOST_THREADS = 8


@dataclass(frozen=True)
class FoundCheckpoint:
    """One folder of a run's checkpoints.

    Attributes:
        folder: where it is.
        step: by its name.
        state: what it is good for.
        num_bytes: of its files.
        age_seconds: since it was written.
        mesh: of the run that wrote it; empty where the manifest cannot be read.
        versions: of the programs that wrote it.
        loss: of its step, where metrics.jsonl has it.
        problem: what is wrong, in words.
    """

    folder: Path
    step: int
    state: State
    num_bytes: int
    age_seconds: float
    mesh: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    loss: float | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class Verification:
    """What the sums of one checkpoint say: ``problems`` of every file that is damaged, ``unreadable`` of those that could not be read."""

    folder: Path
    num_files: int
    num_bytes: int
    seconds: float
    problems: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether every file was read and has its sum."""
        return not self.problems and not self.unreadable


@dataclass(frozen=True)
class Pruning:
    """What stays and what goes. ``damaged`` folders, which a run may set aside, and those that could not be read stay too, uncounted."""

    kept: tuple[Path, ...]
    damaged: tuple[Path, ...]
    doomed: tuple[Path, ...]


def checkpoints_folder(path: Path) -> Path:
    """The folder that holds a run's checkpoints: ``path`` itself, or ``checkpoints`` in it.

    Raises:
        CheckpointError: there is none.
    """
    for root in (path / "checkpoints", path):
        if root.is_dir() and any(_NAME.fullmatch(item.name) for item in root.iterdir()):
            return root
    if path.is_dir() and _NAME.fullmatch(path.name):
        raise CheckpointError("it is one checkpoint, not a run.", file=path, fix=f"name the run: {path.parent}.")
    what = "it holds no checkpoints" if path.is_dir() else "it is not a folder" if path.exists() else "no run has written there yet"
    raise CheckpointError(f"{what}.", file=path, fix="name a run's output_dir, or its folder of checkpoints.")


def chosen_checkpoints(path: Path, *, every: bool = False) -> list[Path]:
    """The checkpoint at ``path``, or a run's newest one there, or with ``every`` all of the run that are committed or superseded.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST_NAME).exists() or (path.is_dir() and _NAME.fullmatch(path.name)):
        return [path]
    root = checkpoints_folder(path)
    committed = [folder for _, folder in committed_steps(root)]
    if every:
        committed += superseded(root)
    if not committed:
        raise CheckpointError("no checkpoint is committed there.", file=root, fix="name a checkpoint folder.")
    return committed if every else committed[-1:]


def found_checkpoints(root: Path) -> list[FoundCheckpoint]:
    """Everything in a run's folder of checkpoints, by step; of the same step, committed ones first."""
    losses = _losses(root.parent / METRICS_NAME)
    # Asking takes the lock for a moment, in which a run could not start, so it is asked only where the answer matters.
    running = any(root.glob(f"{TEMPORARY_PREFIX}*")) and is_running(root.parent)
    found = []
    for folder in sorted(root.iterdir(), key=lambda item: (item.name.startswith("."), item.name)):
        if (match := _NAME.fullmatch(folder.name)) and folder.is_dir():
            found.append(_found(folder, int(match[1]), losses, running=running))
    return sorted(found, key=lambda item: item.step)


def _found(folder: Path, step: int, losses: dict[int, float], *, running: bool) -> FoundCheckpoint:
    manifest, problem = _checked_sizes(folder)
    state: State = "whole"
    if folder.name.startswith(TEMPORARY_PREFIX):
        state, problem = "being written" if running else "left over", None
    elif (suffix := aside_suffix(folder.name)) is not None:
        state = "quarantined" if suffix == QUARANTINE_SUFFIX else "superseded"
    elif problem is not None:
        kinds: dict[type[CheckpointError], State] = {OtherVersionError: "other version", UnreadableError: "unreadable"}
        state = kinds.get(type(problem), "damaged")
    elif manifest is not None and manifest.step != step:
        state, problem = "damaged", damaged(folder / MANIFEST_NAME, f"it is the manifest of step {manifest.step}")
    num_bytes, written = _size_and_time(folder)
    return FoundCheckpoint(
        folder,
        step,
        state,
        num_bytes,
        max(0.0, time.time() - written),
        mesh=manifest.mesh if manifest else {},
        versions=manifest.versions if manifest else {},
        loss=losses.get(step),
        problem=None if problem is None else str(problem),
    )


def _size_and_time(folder: Path) -> tuple[int, float]:
    """Bytes of the files, and when it was written; of what the system does not let be looked at, what is known."""
    num_bytes, written = 0, folder.stat().st_mtime
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = path.stat()
            num_bytes += found.st_size if stat.S_ISREG(found.st_mode) else 0
            written = found.st_mtime if path.name == MANIFEST_NAME else written
    return num_bytes, written


def _checked_sizes(folder: Path) -> tuple[Manifest | None, CheckpointError | None]:
    """The manifest, and what is wrong with it or with the sizes of its files."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return None, error
    try:
        for name, expected in manifest.files.items():
            check_size(folder / name, expected)
    except CheckpointError as error:
        return manifest, error
    return manifest, None


def _losses(path: Path) -> dict[int, float]:
    """Step -> loss. A line that cannot be read is passed over: this is for show."""
    losses: dict[int, float] = {}
    if not path.is_file():
        return losses
    with path.open("rb") as handle:
        for line in handle:
            try:
                content = parse_json(line)
            except MS4Error:
                continue
            if isinstance(content, dict) and isinstance(content.get("loss"), float) and isinstance(content.get("step"), int):
                losses[content["step"]] = content["loss"]
    return losses


def is_running(output_dir: Path) -> bool:
    """Whether a run writes to this folder now; False where the file system has no locks."""
    try:
        descriptor = os.open(output_dir / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def verify_checkpoint(folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Compare every file of a checkpoint with its sum, several at a time.

    Args:
        folder: of the checkpoint, under any name.
        progress: called with (bytes done, bytes in all), from this thread.
    """
    began = time.perf_counter()
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        unread = isinstance(error, UnreadableError)
        return Verification(folder, 0, 0, time.perf_counter() - began, () if unread else (str(error),), (str(error),) if unread else ())
    problems, unreadable = [], []
    if (match := _NAME.fullmatch(folder.name)) and int(match[1]) != manifest.step:
        problems.append(str(damaged(folder / MANIFEST_NAME, f"it is the manifest of step {manifest.step}")))

    def check(name: str) -> CheckpointError | None:
        try:
            verify_files(folder, {name: manifest.files[name]})
        except CheckpointError as error:
            return error
        return None

    # The large ones first, so that no thread is left with one at the end.
    names = sorted(manifest.files, key=lambda name: -manifest.files[name].bytes)
    total, done = sum(item.bytes for item in manifest.files.values()), 0
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for name, problem in zip(names, pool.map(check, names), strict=True):
            done += manifest.files[name].bytes
            progress(done, total)
            if problem is not None:
                (unreadable if isinstance(problem, UnreadableError) else problems).append(str(problem))
    return Verification(folder, len(names), total, time.perf_counter() - began, tuple(problems), tuple(unreadable))


def plan_pruning(root: Path, keep: int, *, aside: bool = False, progress: Callable[[int, int], None] = lambda done, total: None) -> Pruning:
    """What of a run's checkpoints would stay and go. What stays is verified: a damaged checkpoint is no reason to delete a good one.

    Args:
        root: of the run's checkpoints.
        keep: how many good ones stay, at least 2.
        aside: whether quarantined, superseded and left-over folders go too.
        progress: as in ``verify_checkpoint``.

    Raises:
        CheckpointError: ``keep`` is less than 2.
    """
    if keep < 2:
        raise CheckpointError(
            f"is {keep}; at least 2 checkpoints stay.", key="--keep", fix="if the newest is damaged, the run goes on from the one before."
        )
    kept, bad, doomed = [], [], []
    for _, folder in reversed(committed_steps(root)):
        if len(kept) == keep:
            doomed.append(folder)
        elif verify_checkpoint(folder, progress=progress).is_good:
            kept.append(folder)
        else:
            bad.append(folder)
    if aside:
        doomed += [found.folder for found in found_checkpoints(root) if found.state in ("quarantined", "superseded", "left over")]
    return Pruning(tuple(kept), tuple(bad), tuple(doomed))


def carry_out(pruning: Pruning) -> None:
    """Delete what goes.

    Raises:
        StorageError: a folder cannot be renamed.
    """
    for folder in pruning.doomed:
        delete_checkpoint(folder)
