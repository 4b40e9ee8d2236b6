"""Saving: what a committed folder holds, what runs on meanwhile, what a failure leaves behind, when older checkpoints go."""

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.run_state import assert_same_state, exported, save_now, saver, small_engine, train_small

from ms4_train.checkpoint import find_saved_run, part, writer
from ms4_train.checkpoint import save as save_module
from ms4_train.checkpoint.manifest import canonical_json, read_manifest, verify_folder
from ms4_train.checkpoint.room import checkpoint_bytes
from ms4_train.errors import CheckpointError, DiskFullError, NotFiniteError, StorageError, TrainingError
from ms4_train.parallel import Mesh
from ms4_train.training.stop import TrainingInterruptedError

REPOSITORY = Path(__file__).parents[3]


def names(root):
    return sorted(path.name for path in root.iterdir())


def settle(made):
    """What the loop does at the end of every step."""
    made.settle([made.status()])


@pytest.fixture
def gate(monkeypatch):
    """The writer waits for this event before its first file."""
    opened, write = threading.Event(), part.write_synced

    def waiting(path, *parts, **keys):
        assert opened.wait(20)
        return write(path, *parts, **keys)

    monkeypatch.setattr(part, "write_synced", waiting)
    yield opened
    opened.set()


def fail_with(monkeypatch, error, times=1):
    """The writer raises instead of writing its first file, ``times`` times."""
    write, left = part.write_synced, [times]

    def failing(path, *parts, **keys):
        if left[0]:
            left[0] -= 1
            raise error
        return write(path, *parts, **keys)

    monkeypatch.setattr(part, "write_synced", failing)


def test_folder_holds_every_parameter_with_its_moments(tmp_path):
    engine = small_engine(steps=2)
    folder = save_now(tmp_path / "checkpoints", engine, 2, {"loader": {"row": 7}})
    assert folder.name == "step-000002"
    assert verify_folder(folder, 2) == 2
    assert names(folder) == ["MANIFEST.json", "rank-00000-000.safetensors", "rank-00000.json", "state.json"]
    tensors = load_file(folder / "rank-00000-000.safetensors")
    expected = exported(engine)
    assert set(tensors) == {f"{kind}:{name}@0" for name in expected for kind in ("weight", "exp_avg", "exp_avg_sq")}
    assert all(torch.equal(tensors[f"{kind}:{name}@0"], tensor) for name, (kinds, _) in expected.items() for kind, tensor in kinds.items())
    state = json.loads((folder / "state.json").read_text())
    mesh = {"world_size": 1, "expert_parallel_size": 1, "zero_stage": 0}
    assert state == {"step": 2, "world_size": 1, "mesh": mesh, "config": {"recipe": "small"}, "loader": {"row": 7}}
    manifest = read_manifest(folder)
    assert (manifest.mesh, manifest.versions["torch"]) == (mesh, torch.__version__)
    assert manifest.configuration_sha256 == hashlib.sha256(canonical_json({"recipe": "small"})).hexdigest()


def test_modes_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        folder = save_now(tmp_path, small_engine(steps=1), 1)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_training_goes_on_while_the_old_values_are_written(tmp_path, gate):
    engine = small_engine(steps=1)
    old = exported(engine)
    with saver(tmp_path, engine) as made:
        state = {"loader": {"row": 1}}
        folder = made.save(1, state)
        settle(made)
        assert not folder.exists()
        train_small(engine, 3)
        state["loader"]["row"] = 2
        gate.set()
        made.finish()
    other = small_engine(seed=5)
    saved = find_saved_run(tmp_path, "auto", Mesh())
    saved.restore(other, seed=0)
    assert_same_state(exported(other), old)
    assert saved.state["loader"] == {"row": 1}


def test_without_a_copy_the_new_values_would_be_written(tmp_path, gate, monkeypatch):
    """Negative control of the test above."""
    monkeypatch.setattr(part, "_on_host", lambda tensor: tensor)
    engine = small_engine(steps=1)
    old = exported(engine)
    with saver(tmp_path, engine) as made:
        made.save(1, {})
        train_small(engine, 3)
        gate.set()
    other = small_engine(seed=5)
    find_saved_run(tmp_path, "auto", Mesh()).restore(other, seed=0)
    with pytest.raises(AssertionError):
        assert_same_state(exported(other), old)


def test_a_second_save_waits_for_the_first(tmp_path, gate):
    engine = small_engine(steps=1)
    with saver(tmp_path, engine) as made:
        made.save(1, {})
        threading.Timer(0.2, gate.set).start()
        made.save(2, {})
        assert "step-000001" in names(tmp_path)  # the second may be there too by now
        made.finish()
        assert names(tmp_path) == ["step-000001", "step-000002"]


def test_older_checkpoints_go_after_the_commit(tmp_path, monkeypatch):
    engine = small_engine()
    for step in (1, 2):
        train_small(engine, 1)
        save_now(tmp_path, engine, step)
    seen = []
    monkeypatch.setattr(save_module, "prune", lambda root, keep: seen.append(names(root)))
    save_now(tmp_path, engine, 3)
    assert seen == [["step-000001", "step-000002", "step-000003"]]
    monkeypatch.undo()
    save_now(tmp_path, engine, 4)
    assert names(tmp_path) == ["step-000003", "step-000004"]


def test_an_old_checkpoint_that_cannot_be_deleted_is_no_failed_save(tmp_path, monkeypatch, caplog):
    def refused(root, keep):
        raise StorageError("cannot be written (Permission denied).", file=root / "step-000001")

    monkeypatch.setattr(save_module, "prune", refused)
    with caplog.at_level(logging.WARNING):
        save_now(tmp_path, small_engine(steps=1), 2)
    assert names(tmp_path) == ["step-000002"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("an old checkpoint cannot be deleted: ")
    assert "step-000001" in said


def test_giving_up_a_save_that_is_being_committed_takes_no_file_from_it(tmp_path, monkeypatch):
    """The thread is slow, and names the folder just when the main thread would have begun to delete it."""
    engine = small_engine(steps=1)
    save_now(tmp_path, engine, 1)
    arrived, go_on = threading.Event(), threading.Event()
    flush, unlink = save_module.fsync_folder, os.unlink

    def slow(folder):
        if folder.name.startswith("."):
            arrived.set()
            assert go_on.wait(20)
        flush(folder)

    def unlinked(*arguments, **keys):
        unlink(*arguments, **keys)
        go_on.set()
        thread.join(20)

    monkeypatch.setattr(save_module, "fsync_folder", slow)
    monkeypatch.setattr(writer, "_SECONDS_TO_STOP", 0.05)
    made = saver(tmp_path, engine)
    made.save(2, {})
    thread = made._save.writer._thread
    assert arrived.wait(20)
    monkeypatch.setattr(os, "unlink", unlinked)
    made.abandon()
    monkeypatch.setattr(os, "unlink", unlink)
    go_on.set()
    thread.join(20)
    assert names(tmp_path) == ["step-000001", "step-000002"]
    for step in (1, 2):
        assert verify_folder(tmp_path / f"step-{step:06d}") == step


def test_a_committed_step_is_not_written_again(tmp_path):
    engine = small_engine(steps=1)
    before = save_now(tmp_path, engine, 1).stat().st_ino
    assert save_now(tmp_path, engine, 1).stat().st_ino == before


def test_space_is_checked_first(tmp_path):
    with pytest.raises(DiskFullError, match="bytes are free"):
        save_now(tmp_path, small_engine(steps=1), 1, expected_bytes=1 << 62)
    assert list(tmp_path.iterdir()) == []
    assert checkpoint_bytes(1000) > 12_000


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(28, "No space left on device"), DiskFullError, "the disk is full"),
        (OSError(5, "Input/output error"), StorageError, "cannot be written"),
        (ValueError("unexpected"), CheckpointError, "ValueError: unexpected"),
        (SystemExit(0), CheckpointError, "SystemExit"),
    ],
)
def test_a_failure_in_the_background_is_raised_at_the_end_of_the_next_step(tmp_path, monkeypatch, error, kind, message):
    engine = small_engine(steps=1)
    save_now(tmp_path, engine, 1)
    fail_with(monkeypatch, error)
    made = saver(tmp_path, engine)
    made.save(2, {})
    made._save.writer.wait()
    with pytest.raises(kind, match=message) as caught:
        settle(made)
    assert caught.value.on_all_ranks
    assert names(tmp_path) == ["step-000001"]
    verify_folder(tmp_path / "step-000001", 1)
    assert made.status() is None


def test_a_thread_that_ends_without_a_word_is_a_failure(tmp_path, monkeypatch):
    from ms4_train.checkpoint.writer import PartWriter

    monkeypatch.setattr(PartWriter, "_run", lambda self, part: None)
    made = saver(tmp_path, small_engine(steps=1))
    made.save(1, {})
    made._save.writer.wait()
    with pytest.raises(CheckpointError, match="without a word"):
        settle(made)
    assert names(tmp_path) == []


def test_a_full_disk_may_be_warned_about_but_the_newest_save_must_succeed(tmp_path, monkeypatch, caplog):
    engine = small_engine(steps=1)
    fail_with(monkeypatch, OSError(28, "No space left on device"))
    with saver(tmp_path, engine, go_on=True) as made:
        made.save(1, {})
        made._save.writer.wait()
        settle(made)
        settle(made)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "the disk is full" in caplog.text
        with pytest.raises(DiskFullError):
            made.finish()
        made.save(2, {})
        made.finish()
    assert names(tmp_path) == ["step-000002"]


def test_only_storage_may_fail_without_ending_the_run(tmp_path, monkeypatch):
    fail_with(monkeypatch, ValueError("unexpected"))
    made = saver(tmp_path, small_engine(steps=1), go_on=True)
    made.save(1, {})
    made._save.writer.wait()
    with pytest.raises(CheckpointError):
        settle(made)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (NotFiniteError("the loss is nan.", value=float("nan")), ["step-000001"]),
        (RuntimeError("a defect"), ["step-000001"]),
        (TrainingInterruptedError(15, step=1), ["step-000001"]),
        (TrainingInterruptedError(2), []),
        (KeyboardInterrupt(), []),
    ],
)
def test_a_save_in_flight_is_finished_or_removed_when_the_run_ends(tmp_path, gate, error, left):
    """Finished after an error; removed where the process is to end at once. No thread stays."""
    threading.Timer(0.1, gate.set).start()
    made = saver(tmp_path, small_engine(steps=1))
    made.save(1, {})
    with pytest.raises(type(error)), made:
        raise error
    assert names(tmp_path) == left
    assert all(thread.name != "run state writer" or not thread.is_alive() for thread in threading.enumerate())


def test_where_one_rank_of_two_fails_alone_the_save_is_given_up(tmp_path, gate):
    """The other rank cannot be asked, so nothing may be committed."""
    engine = small_engine(steps=1)
    made = saver(tmp_path, engine)
    made.save(1, {})
    made._mesh = Mesh(0, 2)
    threading.Timer(0.1, gate.set).start()
    with pytest.raises(TrainingError), made:
        raise TrainingError("a row cannot be read.")
    assert names(tmp_path) == []


class FailingExport:
    """An engine whose second parameter cannot be copied from the device."""

    def __init__(self, engine, error):
        self.engine, self.mesh, self.model, self.error = engine, engine.mesh, engine.model, error

    def export_state(self):
        for index, state in enumerate(self.engine.export_state()):
            if index == 1:
                raise self.error
            yield state


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (torch.OutOfMemoryError("no memory"), CheckpointError)]
)
def test_a_state_that_cannot_be_taken_leaves_nothing(tmp_path, error, raised, background):
    def save_it():
        with saver(tmp_path, FailingExport(small_engine(steps=1), error), background=background) as made:
            made.save(1, {})
            made.finish()

    with pytest.raises(raised):
        save_it()
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_is_waited_for_writes_the_same_files_as_one_in_the_background(tmp_path):
    engine, rows = small_engine(steps=2), {"loader": {"row": 7}}
    with saver(tmp_path / "background", engine, shard_bytes=1) as made:
        behind = made.save(2, rows)
    waited = save_now(tmp_path / "waited", engine, 2, rows, shard_bytes=1)
    assert len(names(waited)) == 6  # of three pieces, a file each
    assert {path.name: path.read_bytes() for path in waited.iterdir()} == {path.name: path.read_bytes() for path in behind.iterdir()}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("unexpected")])
def test_a_failure_while_live_state_is_written_is_raised_by_the_save(tmp_path, monkeypatch, error):
    engine = small_engine(steps=1)
    save_now(tmp_path, engine, 1)
    fail_with(monkeypatch, error)
    with pytest.raises(DiskFullError if isinstance(error, OSError) else CheckpointError) as caught:
        save_now(tmp_path, engine, 2)
    assert caught.value.on_all_ranks
    assert names(tmp_path) == ["step-000001"]


FULL_DISK = """
import shutil
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
from support.run_state import save_now, small_engine
from ms4_train.checkpoint.manifest import verify_folder
from ms4_train.errors import DiskFullError
engine = small_engine(steps=1, width=4096)
root = Path(sys.argv[1]) / "checkpoints"
for filler in range(0, 640, 40):   # ballast in KiB: the disk fills in every file of the second checkpoint in turn
    for path in root.glob("*"):
        shutil.rmtree(path)
    first = save_now(root, engine, 1, keep=1)
    ballast = root.parent / "ballast"
    ballast.write_bytes(b"x" * (filler << 10))
    try:
        second = save_now(root, engine, 2, {"padding": "x" * 60000}, keep=1)
        verify_folder(second, 2)
        print("saved")
    except DiskFullError as error:
        assert "full" in str(error) and "bytes are free" in str(error), error
        verify_folder(first, 1)
        assert [path.name for path in root.iterdir()] == ["step-000001"], list(root.iterdir())
        print("refused")
    ballast.unlink()
"""


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
    """A real file system of 1.3 MB that fills up at sixteen different places."""
    probe = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("user namespaces are not allowed here, so no small file system can be mounted")
    script = f"mount -t tmpfs -o size=1300k none {tmp_path} && exec {sys.executable} - {tmp_path}"
    result = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], input=FULL_DISK, capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    outcomes = result.stdout.split()
    assert len(outcomes) == 16
    assert outcomes[0] == "saved"
    assert outcomes[-1] == "refused"
