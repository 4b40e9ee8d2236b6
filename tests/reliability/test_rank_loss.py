"""Real runs on gloo ranks: one rank is killed, stopped or hangs, and all others end in time, say who it was, and the run goes on later.

``support.rank_losses`` makes the runs. The quick tier has two ranks without DeepSpeed; the slow one four ranks with ZeRO 2, every rank in
every phase, and the restart. The control without a watch is in tests/ms4_train/parallel/test_watch.py.
"""

import json
import re
import subprocess
import sys

import pytest
from support.distributed import ROOT, rank_environment
from support.rank_losses import OTHER_PHASES, PHASES, STEPS, TIMEOUT

SAVED = {"load": None, f"export of step {STEPS}": f"step-{STEPS:06d}"}
"""The newest run state where it is not that of step 4."""
KILL_SECONDS, HANG_SECONDS = 10, TIMEOUT + 5


def reported(folder, tier):
    command = [sys.executable, "-m", "support.rank_losses", str(folder), tier]
    done = subprocess.run(command, env=rank_environment(0, 1, 0), cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return reported(tmp_path_factory.mktemp("losses"), "quick")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return reported(tmp_path_factory.mktemp("losses"), "full")


def complaints(name, case):
    """What is wrong with the end of a run, as text; empty when nothing is."""
    who, kind, ranks = case["who"], name.split()[0], len(case["codes"])
    wrong = []
    expected = dict.fromkeys(range(ranks), 76) | ({} if kind == "hang" else {who: -9})
    # A rank that has nothing to export may have ended well by then.
    done = {rank for rank, code in enumerate(case["codes"]) if code == 0 and case["place"].startswith("export")}
    if dict(enumerate(case["codes"])) != expected | dict.fromkeys(done, 0) or len(done) == ranks - 1:
        wrong.append(f"exit codes {case['codes']}")
    if case["left"]:
        wrong.append(f"processes left: {case['left']}")
    limit = KILL_SECONDS if kind == "kill" else HANG_SECONDS
    if max(case["after_event"]) > limit:
        wrong.append(f"ended {max(case['after_event']):.1f} s after the event")
    verb = "ended in" if kind == "kill" else "hangs in"
    for rank, output in enumerate(case["output"]):
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        if (rank == who and kind != "hang") or rank in done:
            continue
        if len(errors) != 1 or not re.match(rf"error: rank {who} \(.+\) {verb} {case['place']}\b", errors[0]):
            wrong.append(f"rank {rank} says {errors or output[-300:]}")
        if "Traceback" in output:
            wrong.append(f"rank {rank} shows a traceback")
    if SAVED.get(case["place"], "step-000004") not in [None, *case["saved"]]:
        wrong.append(f"saved: {case['saved']}")
    return wrong


def test_two_ranks(quick):
    assert {name: complaints(name, case) for name, case in quick.items()} == {name: [] for name in quick}
    assert len(quick) == 2


def test_control_the_complaints_see_what_is_wrong(quick):
    name, case = next(iter(quick.items()))
    assert complaints(name, {**case, "who": 1 - case["who"]})
    assert complaints(name, {**case, "left": [7]})
    assert complaints(name, {**case, "after_event": [99.0]})
    assert complaints(name, {**case, "place": "backward of step 6"})


@pytest.mark.slow
def test_four_ranks_every_rank_in_every_phase(full):
    cases = {name: case for name, case in full.items() if name != "restarted"}
    assert {name: complaints(name, case) for name, case in cases.items()} == {name: [] for name in cases}
    assert len(cases) == 4 * len(PHASES) + len(OTHER_PHASES) + 8


@pytest.mark.slow
def test_a_run_that_lost_a_rank_goes_on_with_four_and_with_two(full):
    case = full["restarted"]
    assert case["whole"] == case["same"] == [0] * 4, case["output"][-4000:]
    assert case["broken"] == [76, 76, -9, 76]
    assert case["fewer"] == [0, 0], case["output"][-4000:]
    assert len(case["whole losses"]) == STEPS
    assert [loss.hex() for loss in case["broken losses"]] == [loss.hex() for loss in case["whole losses"]]
    assert case["broken model"] == case["whole model"]
    assert case["fewer losses"] == pytest.approx(case["whole losses"], abs=1e-6)
    assert case["fewer losses"] != case["whole losses"]  # sums in another order: it was another number of ranks
    for name in ("whole", "broken", "fewer"):
        assert [entry for entry in case[f"{name} left"] if "tmp" in entry] == []
