"""What a run's folder of checkpoints is said to hold, against folders that the real writer made and a test damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.run_state import small_engine, train_small
from support.run_state_saves import save

from ms4_train.checkpoint import FolderLock
from ms4_train.checkpoint.folders import prune, quarantine
from ms4_train.checkpoint.inspection import (
    carry_out,
    checkpoints_folder,
    chosen_checkpoints,
    found_checkpoints,
    is_running,
    plan_pruning,
    verify_checkpoint,
)
from ms4_train.errors import CheckpointError


@pytest.fixture
def run(tmp_path):
    """The output folder of a run with checkpoints 1 to 5."""
    engine, output = small_engine(), tmp_path / "run"
    for step in range(1, 6):
        train_small(engine, 1)
        save(output / "checkpoints", engine, step, keep=9)
    lines = [{"step": step, "loss": 1 / step} for step in range(1, 5)]
    (output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    return output


def flip(folder):
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def states(root):
    return {(item.folder.name, item.state) for item in found_checkpoints(root)}


def test_the_list(run):
    root = run / "checkpoints"
    quarantine(root / "step-000001")
    (root / "step-000002").rename(root / "step-000002.superseded")
    next((root / "step-000003").glob("*.safetensors")).unlink()
    (root / ".tmp-step-000006").mkdir()
    (root / "notes").mkdir()
    found = found_checkpoints(root)
    assert [(item.step, item.state) for item in found] == [
        (1, "quarantined"),
        (2, "superseded"),
        (3, "damaged"),
        (4, "whole"),
        (5, "whole"),
        (6, "left over"),
    ]
    whole = found[3]
    assert whole.loss == 1 / 4
    assert whole.mesh == {"world_size": 1, "expert_parallel_size": 1, "zero_stage": 0}
    assert whole.num_bytes == sum(path.stat().st_size for path in whole.folder.iterdir())
    assert 0 <= whole.age_seconds < 600
    assert found[4].loss is None, "the line of step 5 is torn"
    assert "the file is missing" in (found[2].problem or "")
    json.dumps([item.to_json() for item in found])


def test_a_list_looks_at_sizes_and_a_verdict_at_sums(run):
    folder = run / "checkpoints" / "step-000005"
    assert verify_checkpoint(folder).problems == ()
    flip(folder)
    assert ("step-000005", "whole") in states(run / "checkpoints")
    (problem,) = verify_checkpoint(folder).problems
    assert "SHA-256 differs" in problem
    assert str(folder) in problem


def test_a_verdict_names_every_damaged_file(run):
    folder = run / "checkpoints" / "step-000004"
    for path in sorted(folder.glob("*.safetensors"))[:2]:
        os.truncate(path, 10)
    found = verify_checkpoint(folder)
    assert len(found.problems) == 2
    assert found.num_files == len(list(folder.iterdir())) - 1
    renamed = folder.rename(folder.with_name("step-000007"))
    assert any("manifest of step 4" in problem for problem in verify_checkpoint(renamed).problems)
    shutil.rmtree(renamed)
    assert not verify_checkpoint(renamed).is_good


def test_what_cannot_be_read_is_not_called_damaged(run, monkeypatch):
    root, true = run / "checkpoints", Path.lstat

    def refused(path):
        if path.parent.name == "step-000005" and path.suffix == ".safetensors":
            raise OSError(5, "Input/output error", str(path))
        return true(path)

    monkeypatch.setattr("pathlib.Path.lstat", refused)
    found = verify_checkpoint(root / "step-000005")
    assert (found.problems, found.is_good) == ((), False)
    assert all("Input/output error" in problem for problem in found.unreadable)
    assert ("step-000005", "unreadable") in states(root)
    plan = plan_pruning(root, 2)
    assert (plan.damaged, plan.kept) == ((root / "step-000005",), (root / "step-000004", root / "step-000003"))
    monkeypatch.undo()
    assert verify_checkpoint(root / "step-000005").is_good
    assert ("step-000005", "whole") in states(root)


def test_what_was_set_aside_more_than_once(run):
    root = run / "checkpoints"
    names = [f"step-00000{step}.{word}" for step, word in ((1, "quarantine"), (1, "quarantine-2"), (2, "superseded"), (2, "superseded-2"))]
    for name in names:
        shutil.copytree(root / name[:11], root / name)
    assert {(name, "quarantined" if "quarantine" in name else "superseded") for name in names} < states(root)
    assert [path.name for path in chosen_checkpoints(run, every=True)][-2:] == names[2:]
    assert all(chosen_checkpoints(root / name) == [root / name] and verify_checkpoint(root / name).is_good for name in names)
    shutil.copytree(root / "step-000003", root / "step-000002.superseded-3")
    assert "manifest of step 3" in verify_checkpoint(root / "step-000002.superseded-3").problems[0]
    carry_out(plan_pruning(root, 5, aside=True))
    assert sorted(path.name for path in root.iterdir()) == [f"step-00000{step}" for step in range(1, 6)]


def test_progress_ends_with_all_bytes(run):
    seen = []
    found = verify_checkpoint(run / "checkpoints" / "step-000004", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (found.num_bytes, found.num_bytes)


def test_another_version_is_not_damage(run):
    path = run / "checkpoints" / "step-000004" / "MANIFEST.json"
    old = {"format": "ms4-run-state", "version": 1, "step": 4, "files": {}}
    path.write_text(json.dumps(old, sort_keys=True, separators=(",", ":")))
    assert ("step-000004", "other version") in states(run / "checkpoints")


def test_pruning_keeps_the_newest_good_ones(run):
    root = run / "checkpoints"
    flip(root / "step-000005")
    plan = plan_pruning(root, 2)
    names = [[path.name for path in paths] for paths in (plan.kept, plan.damaged, plan.doomed)]
    assert names == [["step-000004", "step-000003"], ["step-000005"], ["step-000002", "step-000001"]]
    carry_out(plan)
    assert sorted(path.name for path in root.iterdir()) == ["step-000003", "step-000004", "step-000005"]


def test_control_pruning_without_sums_would_delete_good_ones(run):
    """What the run's own pruning does with the same folder: it counts names, for it has just written them."""
    root = run / "checkpoints"
    for step in (4, 5):
        flip(root / f"step-{step:06d}")
    assert plan_pruning(root, 2).doomed == (root / "step-000001",)
    prune(root, 2)
    assert not [path for path in root.iterdir() if not verify_checkpoint(path).problems]


def test_pruning_never_takes_the_last_good_one(run):
    root = run / "checkpoints"
    for step in (2, 3, 4, 5):
        flip(root / f"step-{step:06d}")
    plan = plan_pruning(root, 2)
    assert plan.kept == (root / "step-000001",)
    assert plan.doomed == ()


def test_pruning_what_was_set_aside(run):
    root = run / "checkpoints"
    quarantine(root / "step-000001")
    (root / "step-000002").rename(root / "step-000002.superseded")
    (root / ".tmp-step-000009").mkdir()
    assert plan_pruning(root, 3).doomed == ()
    carry_out(plan_pruning(root, 3, aside=True))
    assert sorted(path.name for path in root.iterdir()) == ["step-000003", "step-000004", "step-000005"]


def test_one_is_too_few(run):
    with pytest.raises(CheckpointError, match="at least 2"):
        plan_pruning(run / "checkpoints", 1)


def test_names_of_runs_and_checkpoints(run, tmp_path):
    root = run / "checkpoints"
    assert checkpoints_folder(run) == checkpoints_folder(root) == root
    assert chosen_checkpoints(run) == chosen_checkpoints(root) == [root / "step-000005"]
    assert chosen_checkpoints(root / "step-000002") == [root / "step-000002"]
    (root / "step-000002").rename(root / "step-000002.superseded")
    assert [path.name for path in chosen_checkpoints(run, every=True)][-1] == "step-000002.superseded"
    for wrong in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="name a run's output_dir"):
            checkpoints_folder(wrong)
    with pytest.raises(CheckpointError, match=f"it is one checkpoint, not a run. Fix: name the run: {root}"):
        checkpoints_folder(root / "step-000005")
    with pytest.raises(CheckpointError, match="it is not a folder"):
        checkpoints_folder(root / "step-000005" / "MANIFEST.json")


def test_a_run_that_is_going_on(run):
    assert not is_running(run)
    lock = FolderLock(run)
    (run / "checkpoints" / ".tmp-step-000006").mkdir()
    try:
        assert is_running(run)
        assert (".tmp-step-000006", "being written") in states(run / "checkpoints")
    finally:
        lock.release()
    assert not is_running(run)
    assert (".tmp-step-000006", "left over") in states(run / "checkpoints")


def test_looking_needs_no_torch():
    code = "import sys, ms4_train.checkpoint.inspection; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
