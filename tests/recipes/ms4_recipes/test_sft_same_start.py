"""Whole runs of two ranks that were not started alike: refused on both, by name, before anything is trained. See same_start_worker.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.distributed import ROOT, rank_environment

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("same_start_worker.py")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """(folder, all cases)"""
    folder = tmp_path_factory.mktemp("same")
    command = [sys.executable, str(WORKER), str(folder)]
    done = subprocess.run(command, env=rank_environment(0, 1, 0), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout)


def refusals(case):
    """The last line of each rank, which both end with; nothing else went wrong."""
    assert case["left"] == []
    assert case["codes"] == [2, 2], case
    assert "Traceback" not in "".join(case["output"])
    return [output.splitlines()[-1] for output in case["output"]]


def test_control_machines_with_the_same_files_train(started):
    folder, report = started
    assert report["equal"]["codes"] == [0, 0], report["equal"]
    assert sorted(path.name for path in (folder / "equal out").iterdir()) == [".lock", "checkpoints", "metrics.jsonl", "model"]
    assert (folder / "equal out" / "checkpoints" / "step-000001").is_dir()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rate", r"training\.learning_rate: differs between ranks: 0\.002 on rank 0 \(host .+\), 1e-09 on rank 1 \(host .+\)\. Fix: start"),
        ("dry", r"training\.learning_rate: differs between ranks: 0\.002 on rank 0 "),
        ("layout", r"parallel\.expert_parallel_size: differs between ranks: 2 on rank 0 \(host .+\), 1 on rank 1 \(host .+\)\. Fix: start"),
        ("accumulation", r"training\.gradient_accumulation_steps: differs between ranks: 1 on rank 0 "),
        ("rows", r"data\.train: differs between ranks: rows with sum \w+ on rank 0 .+ on rank 1 .+ Fix: give every machine the same files"),
        ("torch", r"torch: differs between ranks: .+ 0\.1 on rank 1 .+ Fix: install the same versions"),
        (
            "output",
            r"output_dir: is not one folder for all ranks: rank 1 \(host .+\) does not see in .+machine 1/out what rank 0 .+machine 0/out",
        ),
    ],
)
def test_ranks_that_differ_are_refused_on_both(started, name, said):
    folder, report = started
    for line in refusals(report[name]):
        assert re.match(f"error: {said}", line), line
    assert not list(folder.glob(f"**/{name} out/**/metrics.jsonl"))


def test_control_unchecked_they_train_without_a_word(started):
    """Another learning rate and other rows on rank 1: nothing else finds it."""
    _, report = started
    assert report["unchecked"]["codes"] == [0, 0], report["unchecked"]
    assert "differ" not in "".join(report["unchecked"]["output"])


def test_an_output_folder_of_one_rank_is_left_without_a_trace(started):
    folder, _ = started
    assert [path.name for path in (folder / "machine 0" / "out").iterdir()] == [".lock"]
    assert not (folder / "machine 1" / "out").exists()


def test_control_without_run_state_only_rank_0_needs_the_folder(started):
    folder, report = started
    assert report["unsaved"]["codes"] == [0, 0], report["unsaved"]
    assert (folder / "machine 0" / "unsaved out" / "model").is_dir()


def test_a_disk_that_cannot_be_written_is_told_by_both(started):
    main, other = refusals(started[1]["disk"])
    assert "a file stands where a folder is needed" in main
    assert other == main.replace("error: ", "error: rank 0 has stopped: ")


def test_dry_runs_of_real_ranks_compare_and_write_nothing(started):
    folder, report = started
    assert report["dry and equal"]["codes"] == [0, 0], report["dry and equal"]
    assert not (folder / "dry and equal out").exists()
    assert not (folder / "dry out").exists()
