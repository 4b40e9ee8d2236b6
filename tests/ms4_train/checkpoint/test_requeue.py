"""A job that was queued again knows where it began, and no other job takes its note for its own."""

import shutil

import pytest
from support.run_state import save_now, small_engine

from ms4_train.checkpoint.load import find_saved_run, restart_after
from ms4_train.checkpoint.requeue import NOTE_NAME, began_at, note_beginning
from ms4_train.errors import CheckpointError
from ms4_train.parallel import Mesh


def job(monkeypatch, number, restarts=None):
    for name, value in (("SLURM_JOB_ID", number), ("SLURM_RESTART_COUNT", restarts)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_a_job_that_is_queued_again_finds_its_beginning(tmp_path, monkeypatch):
    root = tmp_path / "run" / "checkpoints"
    job(monkeypatch, "71")
    note_beginning(root, 4)
    assert began_at(root) is None  # its first start
    job(monkeypatch, "71", "0")
    assert began_at(root) is None
    job(monkeypatch, "71", "1")
    assert began_at(root) == 4
    note_beginning(root, 9)  # it goes on from its own step 9, and may have to again
    job(monkeypatch, "71", "12")
    assert began_at(root) == 4


def test_another_job_does_not(tmp_path, monkeypatch):
    job(monkeypatch, "71")
    note_beginning(tmp_path, 4)
    job(monkeypatch, "72", "1")
    assert began_at(tmp_path) is None
    note_beginning(tmp_path, 0)
    assert began_at(tmp_path) == 0
    job(monkeypatch, "71", "1")
    assert began_at(tmp_path) is None, "the folder is another job's by now"


def test_without_a_scheduler_nothing_is_noted(tmp_path, monkeypatch):
    job(monkeypatch, None)
    note_beginning(tmp_path / "checkpoints", 4)
    assert list(tmp_path.iterdir()) == []
    job(monkeypatch, None, "1")
    assert began_at(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job":"71"}', '{"job":"71","step":true}', '{"job":71,"step":4}', "x" * 9000])
def test_a_note_that_makes_no_sense_says_nothing(tmp_path, monkeypatch, text):
    job(monkeypatch, "71", "1")
    (tmp_path / NOTE_NAME).write_text(text)
    assert began_at(tmp_path) is None
    note_beginning(tmp_path, 4)
    assert began_at(tmp_path) == 4


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5"])
def test_a_count_that_is_none(tmp_path, monkeypatch, count):
    job(monkeypatch, "71", count)
    note_beginning(tmp_path, 4)
    assert began_at(tmp_path) is None


def saved(root, *steps, keep=3):
    engine = small_engine(steps=1)
    for step in steps:
        save_now(root, engine, step, keep=keep)
    return root


def begin(root, resume, restarts=0):
    """A start of job 71 up to its first step; returns the step that it goes on from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_JOB_ID", "71")
        patch.setenv("SLURM_RESTART_COUNT", str(restarts))
        found = find_saved_run(root, resume, Mesh())
        restart_after(root, found.step if found else 0)
    return found.step if found else 0


@pytest.mark.parametrize("resume", ["never", "step-000002", "theirs"])
def test_a_job_that_is_queued_again_goes_on_from_its_own_checkpoints(tmp_path, caplog, resume):
    root = saved(tmp_path / "checkpoints", 1, 2)
    if resume == "theirs":
        shutil.copytree(root / "step-000002", tmp_path / "theirs" / "step-000002")
    setting = {"never": "never", "theirs": str(tmp_path / "theirs" / "step-000002")}.get(resume, str(root / resume))
    first = 0 if resume == "never" else 2
    assert begin(root, setting) == first
    assert begin(root, setting, restarts=1) == first, "it has written nothing yet; what lies there is of another run"
    for restarts, step in enumerate((5, 6), start=2):
        saved(root, step, keep=1)  # what the setting names is pruned meanwhile
        caplog.clear()
        assert begin(root, setting, restarts) == step
        assert f"goes on from its own {root / f'step-00000{step}'}; training.resume_from_checkpoint={setting} is for" in caplog.text
    (root / "step-000006" / "state.json").write_text("{}")
    if resume == "step-000002":
        with pytest.raises(CheckpointError, match="no such checkpoint folder"):
            begin(root, setting, restarts=9)
    else:
        assert begin(root, setting, restarts=9) == first
    assert sorted(root.glob("step-000006*")) == [root / "step-000006.quarantine"]


def test_control_a_start_that_is_no_restart_does_as_it_is_told(tmp_path):
    root = saved(tmp_path / "checkpoints", 1, 2)
    assert begin(root, "never") == 0
    saved(root, 5)
    assert find_saved_run(root, "never", Mesh()) is None
    assert begin(root, "never") == 0
    saved(root, 5)
    assert begin(root, "auto", restarts=1) == 5


def test_a_job_that_died_before_it_began_takes_no_other_run_s_checkpoints(tmp_path, monkeypatch):
    root = saved(tmp_path / "checkpoints", 1, 2)
    monkeypatch.setenv("SLURM_JOB_ID", "72")
    restart_after(root, 0)  # another job, which trained here
    saved(root, 5)
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert find_saved_run(root, "never", Mesh()) is None
