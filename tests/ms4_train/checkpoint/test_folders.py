"""Folder names, sweeping, pruning, and the lock against a second run."""

import subprocess
import sys
from pathlib import Path

import pytest

from ms4_train.checkpoint.folders import (
    SUPERSEDED_SUFFIX,
    FolderLock,
    aside_suffix,
    committed_steps,
    delete_checkpoint,
    prune,
    quarantine,
    quarantined,
    set_aside_later,
    step_folder_name,
    superseded,
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


def test_what_was_set_aside_is_never_replaced(tmp_path):
    for text in ("first", "second", "third"):
        for step in ("step-000001", "step-000002"):
            make(tmp_path, step)
            (tmp_path / step / "file").write_text(text)
        assert (quarantine(tmp_path / "step-000001") / "file").read_text() == text
        (aside,) = set_aside_later(tmp_path, 1)
        assert (aside / "file").read_text() == text
    endings = {"": "first", "-2": "second", "-3": "third"}
    wanted = {f"{name}{end}": text for name in ("step-000001.quarantine", "step-000002.superseded") for end, text in endings.items()}
    assert {name: (tmp_path / name / "file").read_text() for name in names(tmp_path)} == wanted
    assert [path.name for path in quarantined(tmp_path)] == [f"step-000001.quarantine{end}" for end in endings]
    assert [path.name for path in superseded(tmp_path)] == [f"step-000002.superseded{end}" for end in endings]
    assert committed_steps(tmp_path) == []


def test_a_file_or_a_dead_link_takes_a_name_too(tmp_path):
    make(tmp_path, "step-000001")
    (tmp_path / "step-000001.quarantine").symlink_to("nowhere")
    (tmp_path / "step-000001.quarantine-2").write_text("")
    assert quarantine(tmp_path / "step-000001").name == "step-000001.quarantine-3"


def test_set_aside_ones_are_in_order_of_steps_and_numbers(tmp_path):
    wanted = ["step-000009.quarantine-2", "step-000009.quarantine-10", "step-1000000.quarantine"]
    make(tmp_path, *wanted, "step-000009.superseded", "step-000009.quarantine-x", "step-000009.quarantined", ".tmp-step-000009.quarantine")
    assert [path.name for path in quarantined(tmp_path)] == wanted
    assert aside_suffix("step-000009.superseded-2") == SUPERSEDED_SUFFIX
    assert aside_suffix("step-000009") is aside_suffix("step-000009.quarantine-") is None


def test_deleting_goes_over_what_a_kill_left(tmp_path):
    make(tmp_path, "step-000001", ".tmp-step-000001")
    delete_checkpoint(tmp_path / "step-000001")
    assert names(tmp_path) == []


@pytest.mark.parametrize("look", [committed_steps, quarantined, superseded, sweep_temporary])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch, look):
    make(tmp_path, "step-000001")

    def refused(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(StorageError, match=r"cannot be listed \(Input/output error\)"):
        look(tmp_path)
    monkeypatch.undo()
    assert look(tmp_path / "absent") == []


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
