"""The power goes in the middle of a save: whatever the disk kept, the newest committed checkpoint is found, and never a part of one.

The calls of a real save are recorded; every prefix of them is replayed on a model of a disk, and every state that a loss of power may leave
there is made into a folder and read by the real loader. ``tests/support/run_state_journal.py`` says what may be lost.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.run_state import exported, small_engine, train_small
from support.run_state_calls import Call, watched
from support.run_state_journal import Disk, Recorder, replay
from support.run_state_points import kind_of
from support.run_state_saves import Bits, resume, same_bits, save

from ms4_train.errors import CheckpointError


@dataclass(frozen=True)
class Recorded:
    """The calls of the save of step 3, the folder before it, and the bits of steps 1 to 3."""

    calls: list[Call]
    root: Path
    before: Path
    bits: dict[int, Bits]


def record(folder: Path, *, background: bool) -> Recorded:
    root, before = folder / "checkpoints", folder / "before"
    engine, bits = small_engine(), {}
    recorder = Recorder()
    for step in (1, 2, 3):
        train_small(engine, 1)
        bits[step] = exported(engine)
        if step == 3:
            shutil.copytree(root, before)
            with watched(recorder, root):
                save(root, engine, step, background=background)
        else:
            save(root, engine, step, background=background)
    return Recorded(recorder.calls, root, before, bits)


@pytest.fixture(scope="module", params=["background", pytest.param("waited for", marks=pytest.mark.slow)])
def recorded(request, tmp_path_factory):
    return record(tmp_path_factory.mktemp("save"), background=request.param == "background")


def disk_before(run: Recorded) -> Disk:
    """The disk as it was when the save of step 3 began, under the name that the calls have."""
    disk = Disk(run.before)
    disk.root = run.root
    return disk


def index_of(calls: list[Call], kind: str, on: str, *, first: int = 0) -> int:
    return next(number for number, call in enumerate(calls) if number >= first and call.kind == kind and kind_of(call.path) == on)


def states_after(run: Recorded, calls: list[Call], scratch: Path, *, first: int = 0) -> Iterator[str | None]:
    """For every state that a loss of power after ``first`` calls or later may leave: None, or what is wrong with what is read from it."""
    rename = index_of(calls, "rename", "unfinished folder") + 1
    promised = flush_around(run, calls, rename)
    promised = rename if promised is None else promised + 1
    for done, disk in replay(run.root, calls, disk_before(run)):
        allowed = {2} if done < rename else {2, 3} if done < promised else {3}
        for loss in disk.losses() if done >= first else ():
            disk.write(scratch, loss)
            wrong = wrong_with(scratch, run, allowed)
            yield wrong and f"after {done} of {len(calls)} calls, {loss.label}: {wrong}"


def flush_around(run: Recorded, calls: list[Call], first: int) -> int | None:
    """Index of the flush of the folder that holds all checkpoints."""
    return next((number for number, call in enumerate(calls) if number >= first and call.kind == "fsync" and call.path == run.root), None)


def wrong_with(scratch: Path, run: Recorded, allowed: set[int]) -> str | None:
    """What is wrong with what is read from a folder."""
    try:
        step, bits, _ = resume(scratch)
    except CheckpointError as error:
        return str(error)
    if step not in allowed or not same_bits(bits, run.bits[step]):
        return f"step {step} was read"
    odd = [path.name for path in scratch.iterdir() if "." in path.name]
    return f"{odd} is left" if odd else None


def test_the_record_is_complete(recorded):
    """Replayed, it gives the folder that really lies there, byte for byte: no call went past the watcher."""
    *_, (_, disk) = replay(recorded.root, recorded.calls, disk_before(recorded))
    replayed = recorded.root.parent / "replayed"
    disk.write(replayed, next(disk.losses()))
    for left, right in ((recorded.root, replayed), (replayed, recorded.root)):
        for path in left.rglob("*"):
            twin = right / path.relative_to(left)
            assert twin.exists(), path
            assert path.is_dir() or path.read_bytes() == twin.read_bytes(), path


def test_in_every_state_the_newest_committed_step_is_read(recorded, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    states = list(states_after(recorded, recorded.calls, tmp_path / "left"))
    assert len(states) > 100
    assert [wrong for wrong in states if wrong] == []


def test_the_order_of_flushes(recorded):
    """Data and their flushes, then the manifest and its flush, then the folder's flush, then the rename, then the flush around it."""
    calls = recorded.calls
    manifest, commit = index_of(calls, "create", "manifest"), index_of(calls, "rename", "unfinished folder")
    files = [call.path for call in calls[:commit] if call.kind == "create" and call.path.name != "MANIFEST.json"]
    assert {kind_of(path) for path in files} == {"tensors", "rank file", "state file"}
    for path in files:
        last = max(number for number, call in enumerate(calls) if call.kind == "write" and call.path == path)
        flush = next(number for number, call in enumerate(calls) if number > last and call.kind == "fsync" and call.path == path)
        assert flush < manifest, f"{path.name} is flushed after the manifest was begun"
    flushed = index_of(calls, "fsync", "manifest", first=manifest)
    assert not [call for call in calls[flushed:commit] if call.kind in ("write", "create")]
    assert flushed < index_of(calls, "fsync", "unfinished folder", first=flushed) < commit
    around = next(number for number, call in enumerate(calls) if number > commit and call.kind == "fsync" and call.path == recorded.root)
    pruned = index_of(calls, "rename", "checkpoint")
    assert commit < around < pruned, "an old checkpoint goes only when the new one is safe"


FLUSHES = ["tensors", "rank file", "state file", "manifest", "unfinished folder", "root"]


@pytest.mark.parametrize("kind", FLUSHES)
def test_control_without_a_flush_a_state_is_found_wrong(recorded, tmp_path, caplog, kind):
    """The record without one flush is that of a writer that forgot it: some loss of power must then cost the checkpoint."""
    caplog.set_level(logging.CRITICAL)
    commit = index_of(recorded.calls, "rename", "unfinished folder")
    dropped = [number for number, call in enumerate(recorded.calls) if call.kind == "fsync" and kind_of(call.path) == kind]
    if kind == "root":
        dropped = [number for number in dropped if number > commit]
    assert dropped
    # Without the flush around it the promise is made with the rename, and the old checkpoint may be gone before the new one is safe.
    kept = [call for number, call in enumerate(recorded.calls) if number not in dropped]
    first = commit - len([number for number in dropped if number < commit])
    assert any(states_after(recorded, kept, tmp_path / "left", first=first))


def test_control_a_manifest_before_its_files_is_found_wrong(recorded, tmp_path, caplog):
    """A rename that comes first names a folder that is not whole."""
    caplog.set_level(logging.CRITICAL)
    calls = list(recorded.calls)
    commit = index_of(calls, "rename", "unfinished folder")
    rename = calls.pop(commit)
    assert rename.target is not None
    early = index_of(calls, "fsync", "tensors")

    def renamed(path: Path) -> Path:
        assert rename.target is not None
        return rename.target if path == rename.path else rename.target / path.name if path.parent == rename.path else path

    moved = [Call(call.kind, renamed(call.path), call.target, call.data, call.offset) for call in calls[early:commit]]
    assert any(states_after(recorded, [*calls[:early], rename, *moved, *calls[commit:]], tmp_path / "left"))
