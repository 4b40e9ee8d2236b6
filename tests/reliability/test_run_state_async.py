"""Saves in the background: what is written is what was saved, failures are raised soon, and nothing old goes before the new is safe.

The first half drives the writer alone, the second real runs (``tests/support/run_state_async.py``).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.run_state import exported, small_engine, train_small
from support.run_state_calls import Call, Watcher, watched
from support.run_state_journal import Recorder
from support.run_state_points import kind_of, step_of
from support.run_state_saves import resume, same_bits, save, saver_of

from ms4_train.checkpoint import part
from ms4_train.checkpoint.writer import PartWriter
from ms4_train.errors import CheckpointError, DiskFullError, StorageError

REPOSITORY = Path(__file__).parents[2]
STATE: dict[str, Any] = {"loader": {}, "identity": {}, "tracking": {}}


class Gate(Watcher):
    """Holds the writer before the first byte of tensors until it is opened."""

    def __init__(self) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()

    def before(self, call: Call) -> None:
        if call.kind == "write" and kind_of(call.path) == "tensors":
            self.reached.set()
            assert self.opened.wait(30)


class Broken(Watcher):
    """Every write of tensors of one step fails."""

    def __init__(self, error: Exception, step: int) -> None:
        self.error, self.step = error, step

    def before(self, call: Call) -> None:
        if call.kind == "write" and kind_of(call.path) == "tensors" and step_of(call.path) == self.step:
            raise self.error


def save_and_change(root: Path) -> tuple[Any, Any]:
    """Save, and change every value before the first byte is written; returns (bits at the save, bits that were saved)."""
    engine, gate = small_engine(steps=2), Gate()
    before = exported(engine)
    with watched(gate, root), saver_of(root, engine) as saver:
        saver.save(2, STATE)
        assert gate.reached.wait(30)
        assert not (root / "step-000002").exists()
        train_small(engine, 1)
        for piece in engine.export_state():
            for tensor in piece.tensors.values():
                tensor.add_(1.0)
        gate.opened.set()
        saver.finish()
    return before, resume(root)[1]


def test_what_is_written_is_what_was_saved(tmp_path):
    before, saved = save_and_change(tmp_path / "checkpoints")
    assert same_bits(saved, before)


def test_control_without_the_copy_the_changed_values_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "_on_host", lambda tensor: tensor.detach())
    before, saved = save_and_change(tmp_path / "checkpoints")
    assert not same_bits(saved, before)


def test_the_next_save_waits_for_the_one_in_flight(tmp_path):
    root, engine, recorder = tmp_path / "checkpoints", small_engine(), Recorder()
    gate = Gate()
    with watched(recorder, root), watched(gate, root), saver_of(root, engine) as saver:
        for step in (1, 2):
            train_small(engine, 1)
            if step == 2:
                threading.Timer(0.2, gate.opened.set).start()
            saver.save(step, STATE)
        saver.finish()
    assert committed_in_order(recorder.calls) == [1, 2]
    first = next(number for number, call in enumerate(recorder.calls) if call.kind == "rename")
    second = next(number for number, call in enumerate(recorder.calls) if call.kind == "create" and step_of(call.path) == 2)
    assert first < second


def committed_in_order(calls: list[Call]) -> list[int]:
    """Steps as they were committed. Fails where an old checkpoint went, or another save began, before the newest one was safe."""
    steps: list[int] = []
    is_safe = True
    for call in calls:
        if call.kind == "rename" and kind_of(call.path) == "unfinished folder":
            step = step_of(call.path)
            assert step is not None
            assert is_safe
            steps.append(step)
            is_safe = False
        elif call.kind == "fsync" and kind_of(call.path) == "root":
            is_safe = True
        elif call.kind == "rename" and kind_of(call.path) == "checkpoint":
            assert is_safe, "an old checkpoint goes before the new one is safe"
            assert step_of(call.path) not in steps[-2:], "one of the two newest goes"
    assert is_safe
    return steps


def many_saves(root: Path, count: int) -> list[Call]:
    engine, recorder = small_engine(), Recorder()
    with watched(recorder, root), saver_of(root, engine, shard_bytes=1 << 20) as saver:
        for step in range(1, count + 1):
            saver.save(step, STATE)
            if step % 3 == 0:
                saver.settle([saver.status()])  # as at the boundary of a step
        saver.finish()
    return recorder.calls


def test_nothing_old_goes_before_the_commit(tmp_path):
    assert committed_in_order(many_saves(tmp_path / "checkpoints", 20)) == list(range(1, 21))


@pytest.mark.slow
def test_nothing_old_goes_before_the_commit_in_a_thousand_saves(tmp_path):
    assert committed_in_order(many_saves(tmp_path / "checkpoints", 1000)) == list(range(1, 1001))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000999", "step-001000"]


def test_control_pruning_before_the_commit_is_found(tmp_path):
    calls = many_saves(tmp_path / "checkpoints", 4)
    pruned = next(number for number, call in enumerate(calls) if call.kind == "rename" and kind_of(call.path) == "checkpoint")
    moved = [call for number, call in enumerate(calls) if number != pruned]
    commit = max(number for number, call in enumerate(moved[:pruned]) if call.kind == "rename")
    with pytest.raises(AssertionError, match="goes"):
        committed_in_order([*moved[: commit + 1], calls[pruned], *moved[commit + 1 :]])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), DiskFullError),
        (OSError(errno.EIO, os.strerror(errno.EIO)), StorageError),
        (ValueError("a defect"), CheckpointError),
    ],
)
def test_a_failure_is_raised_at_the_next_boundary(tmp_path, error, kind):
    root, engine = tmp_path / "checkpoints", small_engine(steps=1)
    kept = save(root, engine, 1)
    with saver_of(root, engine) as saver:
        with watched(Broken(error, 2), root):
            saver.save(2, STATE)  # says nothing yet
            saver._save.writer.wait()  # type: ignore[union-attr]
        with pytest.raises(kind):
            saver.settle([saver.status()])
        assert [path.name for path in root.iterdir()] == [kept.name], "what was written is gone"
        saver.save(3, STATE)
        saver.finish()
    assert resume(root)[0] == 3


def test_a_thread_that_ends_without_a_word_is_a_failure(tmp_path, monkeypatch):
    root, engine = tmp_path / "checkpoints", small_engine(steps=1)
    monkeypatch.setattr(PartWriter, "_run", lambda self, part: None)
    with saver_of(root, engine) as saver:
        saver.save(1, STATE)
        with pytest.raises(CheckpointError, match="ended"):
            saver.finish()
    assert list(root.iterdir()) == []


def test_going_on_warns_once_and_the_end_still_fails(tmp_path, caplog):
    root, engine = tmp_path / "checkpoints", small_engine(steps=1)
    saver = saver_of(root, engine, go_on=True)
    with caplog.at_level(logging.WARNING), watched(Broken(OSError(errno.ENOSPC, "full"), 1), root):
        saver.save(1, STATE)
        saver._save.writer.wait()  # type: ignore[union-attr]
        for _ in range(3):
            saver.settle([saver.status()])
        assert len(caplog.records) == 1
        with pytest.raises(DiskFullError):
            saver.finish()
    saver.save(2, STATE)
    saver.finish()
    assert resume(root)[0] == 2


def test_an_error_of_the_run_leaves_no_half_save_and_no_thread(tmp_path):
    root, engine = tmp_path / "checkpoints", small_engine(steps=1)
    gate = Gate()
    gate.opened.set()

    def failing_run() -> None:
        with watched(gate, root), saver_of(root, engine) as saver:
            saver.save(1, STATE)
            raise RuntimeError("an error of the run")

    with pytest.raises(RuntimeError, match="of the run"):
        failing_run()
    assert not [thread for thread in threading.enumerate() if thread.name == "run state writer"]
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


PLANS = ["disk fails", "writer fails", "thread dies", "stopped with a save in flight", "ends with a save in flight"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    paths = [str(REPOSITORY / name) for name in (".", "kernels", "recipes", "evals", "tests")]
    done = subprocess.run(
        [sys.executable, "-m", "support.run_state_async", str(tmp_path_factory.mktemp("runs")), "straight", *PLANS],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("plan", PLANS)
def test_every_run_comes_to_the_undisturbed_end(runs, plan):
    assert runs[plan]["codes"][-1] == 0
    assert [key for key in ("losses", "files", "loader") if runs[plan][key] != runs["straight"][key]] == []
    assert not [name for name in runs[plan]["folders"] if "." in name]


@pytest.mark.parametrize("plan", ["disk fails", "writer fails", "thread dies"])
def test_a_failed_save_ends_the_run_a_step_later(runs, plan):
    run = runs[plan]
    assert run["codes"][0] == 2
    assert run["reached"][0] == 9, "step 9 was made while the save of step 8 failed, step 10 was not"
    assert run["left"][0] == ["step-000004"]
    assert run["began"][1] == 4


def test_sigterm_waits_for_the_save_in_flight_and_makes_its_own(runs):
    run = runs["stopped with a save in flight"]
    assert run["codes"][0] == 128 + 15
    assert run["left"][0] == ["step-000008", "step-000009"]
    assert run["began"][1] == 9


def test_the_end_of_the_run_waits_for_the_last_save(runs):
    run = runs["ends with a save in flight"]
    assert run["codes"][0] == 0
    assert run["left"][0] == ["step-000008", "step-000012"]


def test_control_bits_that_differ_are_found(tmp_path):
    """The comparison itself can fail: one moment of one parameter, by one bit."""
    bits = exported(small_engine(steps=1))
    other = {name: ({kind: tensor.clone() for kind, tensor in kinds.items()}, step) for name, (kinds, step) in bits.items()}
    assert same_bits(bits, other)
    other["scale"][0]["exp_avg_sq"].view(torch.int32)[0] ^= 1
    assert not same_bits(bits, other)
