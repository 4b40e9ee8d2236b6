"""A disk that is full, over quota or broken while run state is written: the state before stays good, and nothing is lost unsaid.

Runs of ``ms4 train`` on a real small file system (a tmpfs in a user namespace), in ``tests/support/run_state_disk.py``. What is left on a
tmpfs is what is left on a disk: ENOSPC in the middle of a file, files cut off there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
EXACT = ("losses", "files", "loader", "folders")
FULL, OTHER = 75, 2
NEAR_BYTES = 16 * 4096


def run_on_disks(folder: Path, *wanted: str, module: str = "support.run_state_disk") -> dict[str, Any]:
    """The results of what is wanted, by name."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("user namespaces are not allowed here, so no small file system can be mounted")
    paths = [str(REPOSITORY / name) for name in (".", "kernels", "recipes", "evals", "tests")]
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-m", module, str(folder), *wanted],
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def errors(said: str) -> list[str]:
    """The lines of an error, as the command line prints it."""
    assert "Traceback" not in said, said
    return [line for line in said.splitlines() if line.startswith("error: ")]


def require_whole(run: dict[str, Any]) -> None:
    """The newest checkpoint of a run that failed is good, and nothing half-written lies beside it."""
    assert run["damage"] == "", run
    assert run["committed"], run
    assert run["left"] == [f"step-{step:06d}" for step in run["committed"]]


def require_full_disk_said(run: dict[str, Any]) -> None:
    """Exit code 75, and one line with the bytes that are needed and free."""
    assert run["code"] == FULL, run["said"]
    (line,) = errors(run["said"])
    assert "the disk is full" in line
    assert re.search(r"[\d,]+ bytes are needed, [\d,]+ bytes are free", line), line


def require_same_result(run: dict[str, Any], straight: dict[str, Any]) -> None:
    """Every step was made, with the same bits."""
    assert [key for key in EXACT if run["print"][key] != straight[key]] == []


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return run_on_disks(tmp_path_factory.mktemp("disks"), "sizes 3", "start 3", "continue")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_on_disks(tmp_path_factory.mktemp("all disks"), "sizes 20", "start 20", "faults")


def check_sizes(results: dict[str, Any], count: int) -> None:
    """Room for 1 to 2.5 states: the state before is kept, the error says what is missing, and with room the run goes on."""
    assert len(results["sizes"]) == count
    state = results["straight"]["bytes"]
    for run in results["sizes"]:
        require_full_disk_said(run)
        require_whole(run)
        # A run asks for more room than a save takes before it begins one; files are rounded up to pages, so that near the border is open.
        spare = (run["room"] - 1) * state - (state if run["amid"] else results["needed"])
        allowed = [[4, 8]] if spare > NEAR_BYTES else [[4]] if spare < -NEAR_BYTES else [[4], [4, 8]]
        assert run["committed"] in allowed, run["room"]
        assert run["reached"] >= run["committed"][-1] + 4, "the steps up to the save were made"
        assert run["resumed"] == 0, run["said later"]
        require_same_result(run, results["straight"])


def check_start(results: dict[str, Any], count: int) -> None:
    """A run that cannot fit two states does not begin; one that can does."""
    assert len(results["start"]) == count
    refused = [run for run in results["start"] if run["code"] != 0]
    for run in results["start"]:
        if run["room"] < 2:
            require_full_disk_said(run)
            assert run["reached"] == 0
            assert run["left"] == []
        elif run["room"] > 2.05:  # the run's other files take some pages
            assert run["code"] == 0, run["said"]
    assert 0 < len(refused) < count


def test_the_state_before_is_kept_and_the_run_goes_on_when_there_is_room(quick):
    assert quick["straight"]["code"] == 0
    check_sizes(quick, 3)


def test_a_run_that_cannot_fit_two_states_refuses_to_start(quick):
    check_start(quick, 3)


def test_on_save_error_continue_warns_and_trains_on(quick):
    run = quick["continue"]["freed"]
    assert run["code"] == 0, run["said"]
    warnings = [line for line in run["said"].splitlines() if line.startswith("warning: ") and "disk is full" in line]
    assert len(warnings) == 1, run["said"]
    assert run["committed"] == [4, 12]
    exact = [key for key in ("losses", "files", "loader") if run["print"][key] != quick["straight"][key]]
    assert exact == []


def test_on_save_error_continue_does_not_end_without_a_state(quick):
    """The last save must succeed: a run whose result cannot be resumed does not end with 0."""
    run = quick["continue"]["still full"]
    require_full_disk_said(run)
    require_whole(run)
    assert run["committed"] == [4]
    assert run["reached"] == 12
    assert run["resumed"] == 0
    require_same_result(run, quick["straight"])


def test_control_a_lost_state_and_a_silent_end_are_found(quick):
    run = quick["sizes"][0]
    for check, wrong in (
        (require_whole, {**run, "damage": "the file is missing"}),
        (require_whole, {**run, "left": [".tmp-step-000008", *run["left"]]}),
        (require_full_disk_said, {**run, "code": 0}),
        (require_full_disk_said, {**run, "said": "error: the disk is full.\n"}),
        (require_full_disk_said, {**run, "said": "Traceback (most recent call last)\n"}),
    ):
        with pytest.raises(AssertionError):
            check(wrong)


@pytest.mark.slow
def test_twenty_sizes(whole):
    check_sizes(whole, 20)


@pytest.mark.slow
def test_twenty_sizes_at_the_start(whole):
    check_start(whole, 20)


@pytest.mark.slow
def test_quotas_and_broken_disks(whole):
    """EDQUOT is a full disk; EIO is a disk that cannot be written, with exit code 2. Both leave the state before."""
    assert {run["error"] for run in whole["faults"]} == {"EDQUOT", "EIO"}
    for run in whole["faults"]:
        assert run["code"] == (FULL if run["error"] == "EDQUOT" else OTHER), (run["call"], run["said"])
        (line,) = errors(run["said"])
        assert "disk is full" in line or "cannot be written" in line
        require_whole(run)
        assert run["committed"] == [4], run["call"]
        assert run["resumed"] == 0
        require_same_result(run, whole["straight"])


@pytest.mark.slow
def test_several_sizes_on_two_ranks(tmp_path):
    results = run_on_disks(tmp_path, "5", module="support.run_state_disk_ranks")
    for run in results["sizes"]:
        for said in run["said"]:
            assert "Traceback" not in said, said
        assert run["codes"][0] == FULL, run
        assert any(re.search(r"[\d,]+ bytes are needed, [\d,]+ bytes are free", said) for said in run["said"])
        require_whole(run)
        assert run["resumed"] == [0, 0]
        require_same_result(run, results["straight"])
