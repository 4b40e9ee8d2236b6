"""Ranks that die, hang or fail end the others, who say which rank it was and where. The ranks are real processes; see watch_worker.py."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.distributed import ROOT, rank_environment

from ms4_train.parallel import Mesh, progress
from ms4_train.parallel.watch import reason, watched

WORKER = Path(__file__).with_name("watch_worker.py")
TIMEOUT = 2
SLACK = 5  # seconds; issue: a hang ends everywhere at most so long after the timeout


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """All cases, run side by side."""
    command = [sys.executable, str(WORKER), str(tmp_path_factory.mktemp("watch"))]
    done = subprocess.run(command, env=rank_environment(0, 1, 0), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def survivors(case, *lost, code=76):
    """Output of the ranks that were not disturbed; all of them ended with the code, in time, and nobody had to be killed."""
    assert case["left"] == []
    rest = [rank for rank in range(len(case["codes"])) if rank not in lost]
    assert [case["codes"][rank] for rank in rest] == [code] * len(rest), case
    return [case["output"][rank] for rank in rest]


def test_nothing_happens_where_nothing_is_wrong(report):
    for name in ("clean", "busy"):
        assert set(report[name]["codes"]) == {0}
        assert "".join(report[name]["output"]) == ""
    assert max(report["busy"]["seconds"]) > TIMEOUT  # slower than the timeout, but it got on


@pytest.mark.parametrize(("name", "rank", "place"), [("killed", 1, "optimizer of step 3"), ("hub killed", 0, "save of step 2")])
def test_a_killed_rank_is_named_with_its_phase_within_ten_seconds(report, name, rank, place):
    case = report[name]
    assert case["codes"][rank] == -signal.SIGKILL
    assert max(case["seconds"]) < 10
    for output in survivors(case, rank):
        assert re.match(rf"error: rank {rank} \(.+, process \d+\) ended in {place}\. Fix: ", output)
        assert output.count("\n") == 1


def test_an_end_without_goodbye_is_a_death_even_with_code_0(report):
    (output,) = survivors(report["exit"], 1)
    assert "ended in forward of step 2" in output


def test_a_forked_child_does_not_keep_a_dead_rank_alive(report):
    (output,) = survivors(report["with a child"], 1)
    assert "ended in forward of step 2" in output


@pytest.mark.parametrize(("name", "rank"), [("stopped", 1), ("hub stopped", 0)])
def test_a_stopped_rank_is_named_within_the_timeout_and_five_seconds(report, name, rank):
    case = report[name]
    for output in survivors(case, rank):
        assert re.search(rf"rank {rank} \(.+\) hangs in forward of step 2: it gave no sign of life for \d s", output)
    assert TIMEOUT <= case["seconds"][1 - rank] < TIMEOUT + SLACK + 2  # from the start of the processes, so the start counts too


def test_a_stopped_rank_ends_when_it_is_continued(report):
    assert report["continued"]["codes"] == [76, 76]
    assert report["continued"]["left"] == []
    assert "rank 1" in report["continued"]["output"][1]


@pytest.mark.parametrize(("name", "rank", "place"), [("stuck", 1, "forward of step 2"), ("hub stuck", 0, "save of step 2")])
def test_a_stuck_main_thread_is_told_from_those_that_wait_for_it(report, name, rank, place):
    case = report[name]
    assert max(case["seconds"]) < TIMEOUT + SLACK + 2
    for output in survivors(case):
        assert re.search(rf"rank {rank} \(.+\) hangs in {place}, at watch_worker.py:\d+ <lambda>: no rank got any further", output)


def test_where_all_are_stuck_alike_nobody_is_accused(report):
    for output in survivors(report["all stuck"]):
        assert "no rank got any further for 2 s: all of them are in forward of step 2" in output


def test_an_error_of_one_rank_is_told_in_full_once(report):
    case = report["failed"]
    assert case["codes"][1] == 2
    assert case["output"][1] == "error: training.seed: is odd. Fix: make it even.\n"
    assert set(survivors(case, 1, code=2)) == {"error: rank 1 ended with an error: training.seed: is odd. Fix: make it even.\n"}
    assert report["hub failed"]["codes"] == [2, 2]
    assert "rank 0 ended with an error" in report["hub failed"]["output"][1]


def test_a_defect_keeps_its_traceback_and_is_named_to_the_others(report):
    case = report["defect"]
    assert case["codes"][1] == 70
    assert "Traceback" in case["output"][1]
    assert survivors(case, 1) == ["error: rank 1 ended with an error: ValueError: a defect\n"]


def test_an_error_that_all_raise_is_each_ones_own(report):
    assert report["together"]["codes"] == [2, 2, 2]
    assert set(report["together"]["output"]) == {"error: the same on every rank.\n"}


def test_control_without_a_watch_nobody_finds_a_stopped_rank(report):
    case = report["control"]
    assert len(case["left"]) == 1
    assert min(case["seconds"]) > TIMEOUT + SLACK


def test_one_process_has_no_watch():
    heard = []
    earlier = progress.listen(heard.append)
    try:
        with watched(Mesh(), timeout_seconds=1):
            progress.at("forward", 1)
            assert reason() is None
    finally:
        progress.listen(earlier)
    assert [place.phase for place in heard] == ["forward"]
