"""Folder names, sweeping, pruning, and the lock against a second run."""

import subprocess
import sys
from pathlib import Path

import pytest

from ms4_train.checkpoint.folders import (
    FolderLock,
    committed_steps,
    prune,
    quarantine,
    quarantined,
    set_aside_later,
    step_folder_name,
    sweep_temporary,
)
from ms4_train.errors import CheckpointError, StorageError

REPOSITORY = Path(__file__).parents[3]
LOCK_AND_END = """
import sys
from pathlib import Path
from ms4_train.checkpoint.folders import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("locked")
"""


def make(root, *names):
    for name in names:
        (root / name).mkdir()
        (root / name / "file").write_text("x")


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_only_committed_names_count_and_order_is_by_step(tmp_path):
    make(tmp_path, "step-000010", "step-000009", "step-1000000", ".tmp-step-000011", "step-000012.quarantine", "step-1", "notes")
    assert [step for step, _ in committed_steps(tmp_path)] == [9, 10, 1_000_000]
    assert [path.name for path in quarantined(tmp_path)] == ["step-000012.quarantine"]
    assert step_folder_name(1_000_000) == "step-1000000"
    assert committed_steps(tmp_path / "absent") == []


def test_what_cannot_be_swept_is_said(tmp_path, monkeypatch):
    make(tmp_path, ".tmp-step-000002")

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refused)
    with pytest.raises(StorageError, match=r"\.tmp-step-000002: cannot be written \(Permission denied\)"):
        sweep_temporary(tmp_path)


def test_sweep_deletes_only_temporary_names(tmp_path):
    make(tmp_path, ".tmp-step-000003", "step-000002")
    (tmp_path / ".tmp-file").write_text("")
    assert len(sweep_temporary(tmp_path)) == 2
    assert names(tmp_path) == ["step-000002"]


def test_prune_keeps_the_newest(tmp_path):
    make(tmp_path, "step-000001", "step-000002", "step-000003", "step-000002.quarantine")
    assert [path.name for path in prune(tmp_path, 1)] == ["step-000001", "step-000002"]
    assert names(tmp_path) == ["step-000002.quarantine", "step-000003"]


def test_quarantine_replaces_an_older_one_of_the_same_step(tmp_path):
    make(tmp_path, "step-000001", "step-000001.quarantine")
    (tmp_path / "step-000001" / "file").write_text("newer")
    assert (quarantine(tmp_path / "step-000001") / "file").read_text() == "newer"
    assert names(tmp_path) == ["step-000001.quarantine"]


def test_later_steps_are_set_aside(tmp_path):
    make(tmp_path, "step-000001", "step-000002", "step-000003")
    set_aside_later(tmp_path, 1)
    assert names(tmp_path) == ["step-000001", "step-000002.superseded", "step-000003.superseded"]


def test_lock_keeps_a_second_run_out_until_the_first_ends(tmp_path):
    def second():
        return subprocess.run(
            [sys.executable, "-c", LOCK_AND_END, str(tmp_path)], capture_output=True, text=True, check=False, cwd=REPOSITORY
        )

    lock = FolderLock(tmp_path)
    with pytest.raises(CheckpointError, match="another run is writing"):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    assert second().stdout == "locked\n"  # and it ended without releasing it
    FolderLock(tmp_path).release()
