"""Saving: what a committed folder holds, what a full disk leaves behind, when older checkpoints go."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.run_state import exported, small_engine, train_small

from ms4_train.checkpoint import save as save_module
from ms4_train.checkpoint.manifest import verify_folder
from ms4_train.checkpoint.save import checkpoint_bytes, save_run_state
from ms4_train.errors import StorageError
from ms4_train.parallel import ParameterState

REPOSITORY = Path(__file__).parents[3]


def save(root, engine, step, **keys):
    return save_run_state(root, engine, step=step, state={"loader": {"row": 7}}, **{"expected_bytes": 0, "keep": 2, **keys})


def test_folder_holds_every_parameter_with_its_moments(tmp_path):
    engine = small_engine(steps=2)
    folder = save(tmp_path / "checkpoints", engine, 2)
    assert folder.name == "step-000002"
    assert verify_folder(folder, 2) == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        "MANIFEST.json",
        "rank-00000-000.safetensors",
        "rank-00000.json",
        "state.json",
    ]
    tensors = load_file(folder / "rank-00000-000.safetensors")
    expected = exported(engine)
    assert set(tensors) == {f"{kind}:{name}" for name in expected for kind in ("weight", "exp_avg", "exp_avg_sq")}
    assert all(torch.equal(tensors[f"{kind}:{name}"], tensor) for name, (kinds, _) in expected.items() for kind, tensor in kinds.items())
    state = json.loads((folder / "state.json").read_text())
    assert state == {"step": 2, "world_size": 1, "loader": {"row": 7}}


def test_small_shards_bound_the_memory(tmp_path):
    folder = save(tmp_path, small_engine(steps=1), 1, shard_bytes=1)
    assert len(list(folder.glob("*.safetensors"))) == 3


def test_modes_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        folder = save(tmp_path, small_engine(steps=1), 1)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_older_checkpoints_go_after_the_commit(tmp_path, monkeypatch):
    engine = small_engine()
    for step in (1, 2):
        train_small(engine, 1)
        save(tmp_path, engine, step)
    seen = []

    def spy(root, keep):
        seen.append(sorted(path.name for path in root.iterdir()))

    monkeypatch.setattr(save_module, "prune", spy)
    save(tmp_path, engine, 3)
    assert seen == [["step-000001", "step-000002", "step-000003"]]
    monkeypatch.undo()
    save(tmp_path, engine, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]


def test_a_committed_step_is_not_written_again(tmp_path):
    engine = small_engine(steps=1)
    before = save(tmp_path, engine, 1).stat().st_ino
    assert save(tmp_path, engine, 1).stat().st_ino == before


def test_space_is_checked_first(tmp_path):
    engine = small_engine(steps=1)
    with pytest.raises(StorageError, match="bytes are free"):
        save(tmp_path, engine, 1, expected_bytes=1 << 62)
    assert list(tmp_path.iterdir()) == []
    assert checkpoint_bytes(1000) > 12_000


class FailingExport:
    """An engine whose second parameter cannot be copied from the device."""

    def __init__(self, engine):
        self.engine, self.mesh, self.model = engine, engine.mesh, engine.model

    def export_state(self):
        for index, state in enumerate(self.engine.export_state()):
            if index == 1:
                raise KeyboardInterrupt
            yield state


def test_an_interrupted_save_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, FailingExport(small_engine(steps=1)), 1)
    assert list(tmp_path.iterdir()) == []


def test_what_another_rank_owns_is_not_written(tmp_path):
    engine = small_engine(steps=1)

    class Borrowed(FailingExport):
        def export_state(self):
            for state in self.engine.export_state():
                owned = state.name != "second"
                yield ParameterState(state.name, state.full_shape, state.offset, state.tensors, state.step, is_owner=owned)

    folder = save(tmp_path, Borrowed(engine), 1)
    assert set(json.loads((folder / "rank-00000.json").read_text())["parameters"]) == {"first", "scale"}


FULL_DISK = """
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
from support.run_state import small_engine
from ms4_train.checkpoint.manifest import verify_folder
from ms4_train.checkpoint.save import save_run_state
from ms4_train.errors import StorageError
engine = small_engine(steps=1, width=4096)
root = Path(sys.argv[1]) / "checkpoints"
for filler in range(0, 640, 40):   # ballast in KiB: the disk fills in every file of the second checkpoint in turn
    for path in root.glob("*"):
        import shutil; shutil.rmtree(path)
    first = save_run_state(root, engine, step=1, state={}, expected_bytes=0, keep=1)
    ballast = root.parent / "ballast"
    ballast.write_bytes(b"x" * (filler << 10))
    try:
        second = save_run_state(root, engine, step=2, state={"padding": "x" * 60000}, expected_bytes=0, keep=1)
        verify_folder(second, 2)
        print("saved")
    except StorageError as error:
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
