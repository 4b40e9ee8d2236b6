"""A training run that is killed (SIGKILL) at named moments and at random times, and goes on: the same bits, rows and files as undisturbed.

``tests/support/run_state_kills.py`` does the training and killing, in forks of one process; the tests look at what came of it. The quick
tier has each moment once, most of them with saves in the background; the whole has them all both ways, and 200 random kills.
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
EXACT = ("losses", "files", "loader")
STEPS, EVERY, SAVED = 12, 4, 8
SAVING = [
    "before the first file is made",
    "in half of the tensors",
    "before the tensors are flushed",
    "after the tensors are flushed",
    "in half of the rank's file",
    "before the state file is written",
    "before the manifest is made",
    "in half of the manifest",
    "before the manifest is flushed",
    "before the folder is flushed",
    "before the rename",
    "after the rename",
    "after the rename is flushed",
]
PRUNING = ["before pruning", "pruned by name", "half pruned", "before the pruned folder goes"]
LOOP = ["in the first save", "in the middle of the loop", "after the last step"]
RESTART = ["while stale files are swept", "quarantined by name", "superseded by name"]
IN_FLIGHT = "with a save in flight"
EVERY_PLAN = [*SAVING, *PRUNING, *LOOP, *RESTART]
QUICK = [
    *("before the first file is made", "in half of the tensors@sync", "before the manifest is made", "in half of the manifest@sync"),
    *("before the folder is flushed", "before the rename@sync", "after the rename", "pruned by name", "half pruned@sync"),
    *("while stale files are swept", "quarantined by name", "superseded by name@sync", IN_FLIGHT),
]


def run_plans(folder: Path, plans: list[str]) -> dict[str, Any]:
    """The results of the plans, by name."""
    paths = [str(REPOSITORY / name) for name in (".", "kernels", "recipes", "evals", "tests")]
    done = subprocess.run(
        [sys.executable, "-m", "support.run_state_kills", str(folder), *plans],
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def require_same_run(run: dict[str, Any], straight: dict[str, Any]) -> None:
    """A run that was killed and went on is the undisturbed one, to the bit and to the row."""
    assert run["codes"][-1] == 0
    assert all(code == -9 for code in run["codes"][:-1]), run["codes"]
    assert [key for key in EXACT if run[key] != straight[key]] == []
    require_same_rows(run, straight["batches"][0])
    require_little_lost(run)
    finished = [name for name in run["folders"] if "." not in name]
    assert finished == straight["folders"]
    assert not [name for name in run["folders"] if name.startswith(".")], "a temporary folder is left"


def require_same_rows(run: dict[str, Any], straight: list[list[Any]]) -> None:
    """Every life took the rows that belong to its steps, beginning at a committed one; so none is left out, and none comes twice."""
    assert [number for number, _ in straight] == list(range(1, STEPS + 1))
    for life, batches in enumerate(run["batches"]):
        if batches:
            assert batches == straight[batches[0][0] - 1 :][: len(batches)]
            newest = max(run["committed"][life], default=0)
            assert batches[0][0] - 1 in (newest, *resumed_elsewhere(run, life)), (life, batches[0], run["committed"])
    lasting: dict[int, Any] = {}
    for batches in run["batches"]:
        lasting |= dict(batches)
    assert [[number, rows] for number, rows in sorted(lasting.items())] == straight


def resumed_elsewhere(run: dict[str, Any], life: int) -> set[int]:
    """Steps that a life may begin at because the newest checkpoint was damaged, or another one was asked for."""
    aside = {int(found[1]) for name in run["left"][life] if (found := re.fullmatch(r"step-(\d+)\.(quarantine|superseded)(-\d+)?", name))}
    return {max((step for step in run["committed"][life] if step < min(aside)), default=0)} if aside else set()


def require_little_lost(run: dict[str, Any]) -> None:
    """What a death cost is at most one interval between saves, and the steps taken while a save was in flight."""
    for life, code in enumerate(run["codes"][:-1]):
        assert code == -9
        done = run["reached"][life]
        kept = max(run["committed"][life + 1], default=0)
        begun = [int(found[1]) for name in run["left"][life] if (found := re.fullmatch(r"\.tmp-step-(\d+)", name))]
        in_flight = done - max(begun) if begun and max(begun) > kept else 0
        if not any("." in name.lstrip(".") for name in run["left"][life]):  # nothing was set aside
            assert done - kept <= EVERY + in_flight, (life, done, kept, begun)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return run_plans(tmp_path_factory.mktemp("kills"), ["straight", *QUICK, "random 2 7"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    plans = [f"{name}{mode}" for name in EVERY_PLAN for mode in ("", "@sync")]
    return run_plans(tmp_path_factory.mktemp("all kills"), ["straight", "straight@sync", IN_FLIGHT, *plans])


def test_the_undisturbed_run_shows_every_row_once_an_epoch(quick):
    run = quick["straight"]
    assert run["codes"] == [0]
    assert [row[0] for row in run["losses"]] == list(range(1, STEPS + 1))
    assert run["folders"] == ["step-000008", "step-000012"]
    rows = [row for _, batch in run["batches"][0] for row in batch]
    first_epoch = 20 + 6  # of a every row, of b six of ten: the weights of sft_run
    counts = collections.Counter(Path(row).name for row in rows[:first_epoch])
    assert set(counts.values()) == {1}
    assert sorted(int(row.partition(":")[2]) for row in counts if row.startswith("a")) == list(range(1, 21))
    assert len(rows) > first_epoch, "the run goes past an epoch"


@pytest.mark.parametrize("plan", QUICK)
def test_a_killed_run_goes_on_with_the_same_bits(quick, plan):
    run = quick[plan]
    assert len(run["codes"]) >= 2
    require_same_run(run, quick["straight"])


def test_kills_at_random_times(quick):
    runs = quick["random 2 7"]
    assert sum(code == -9 for run in runs for code in run["codes"]) == 2
    for run in runs:
        require_same_run(run, quick["straight"])


LEFT = {
    "before the first file is made": [".tmp-step-000008", "step-000004"],
    "in half of the manifest@sync": [".tmp-step-000008", "step-000004"],
    "before the rename@sync": [".tmp-step-000008", "step-000004"],
    "after the rename": ["step-000004", "step-000008"],
    "pruned by name": [".tmp-step-000004", "step-000008", "step-000012"],
    IN_FLIGHT: [".tmp-step-000008", "step-000004"],
}


@pytest.mark.parametrize("plan", LEFT)
def test_kills_hit_the_points_they_are_named_after(quick, plan):
    assert quick[plan]["left"][0] == LEFT[plan]


def test_a_save_in_flight_holds_up_no_step(quick):
    assert quick[IN_FLIGHT]["reached"][0] == SAVED + 2


def test_control_a_wrong_row_a_lost_step_and_a_changed_bit_are_found(quick):
    straight, run = quick["straight"], quick["in half of the tensors@sync"]

    def changed(**keys: Any) -> dict[str, Any]:
        return {**json.loads(json.dumps(run)), **keys}

    repeated = [[list(batch) for batch in life] for life in run["batches"]]
    repeated[1] = [[number - 1 if number > EVERY else number, rows] for number, rows in repeated[1]]
    other = {**run["files"], "rank-00000.json": "0" * 64}
    for wrong in (
        changed(batches=repeated),
        changed(batches=[run["batches"][0], run["batches"][1][1:]]),
        changed(files=other),
        changed(codes=[0, 0]),
        changed(reached=[10, 12], committed=[[], [4]], left=[["step-000004"], run["left"][1]]),
        changed(folders=[".tmp-step-000008", *run["folders"]]),
    ):
        with pytest.raises(AssertionError):
            require_same_run(wrong, straight)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["", "@sync"])
@pytest.mark.parametrize("plan", EVERY_PLAN)
def test_every_point_in_both_ways_of_saving(whole, plan, mode):
    assert len(whole[plan + mode]["codes"]) >= 2
    require_same_run(whole[plan + mode], whole["straight"])


@pytest.mark.slow
def test_saving_in_the_background_changes_nothing(whole):
    assert [key for key in EXACT if whole["straight"][key] != whole["straight@sync"][key]] == []
    require_same_run(whole[IN_FLIGHT], whole["straight"])


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "seed"), [("", 1), ("@sync", 2)])
def test_a_hundred_kills_at_random_times(tmp_path, mode, seed):
    plan = f"random 100 {seed}{mode}"
    results = run_plans(tmp_path, ["straight", plan])
    assert sum(code == -9 for run in results[plan] for code in run["codes"]) == 100
    for run in results[plan]:
        require_same_run(run, results["straight"])
