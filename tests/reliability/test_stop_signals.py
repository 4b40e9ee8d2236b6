"""Real runs that get SIGTERM at random moments commit a checkpoint, end with the documented code, and go on to the same bits.

``support.stop_runs`` makes the runs. The quick tier stops one process three times; the slow one stops one process and two ranks, twenty
times each, at moments that differ from run to run (the seed is in the message).
"""

import json
import os
import random
import re
import subprocess
import sys

import pytest
from support.distributed import ROOT, rank_environment

GRACE_SECONDS = 30


def reported(folder, count, ranks, seed):
    environment = rank_environment(0, 1, 0) | {"MS4_STOP_SEED": seed}
    command = [sys.executable, "-m", "support.stop_runs", str(folder), str(count), str(ranks)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, (seed, done.stderr[-4000:])
    return json.loads(done.stdout)


def check(report, count, ranks, seed):
    assert report["whole"]["codes"] == [0] * ranks, report["whole"]["output"]
    assert len(report["stopped"]) == count
    for case in report["stopped"]:
        about = (seed, case["place"], case["output"])
        assert case["left"] == [], about
        assert case["codes"] == [143] * ranks, about
        assert max(case["seconds"]) < GRACE_SECONDS, about
        (saved,) = case["saved"]  # nothing but what the signal saved
        assert all(f"stopped by SIGTERM after step {saved}; run state is in" in output for output in case["output"][:ranks]), about
        assert case["resumed"] == [0] * ranks, about
        assert (case["losses"], case["weights"]) == (report["whole"]["losses"], report["whole"]["weights"]), about
    twice = report["twice"]
    # A rank that hears of the other's end before it comes out of its collective says so, and the launcher looks at the other.
    assert twice["codes"][0] == 130 or set(twice["codes"]) == {130, 76}, twice
    assert max(twice["seconds"]) < 2, twice  # from 0.3 s after the second signal
    assert twice["resumed"] == [0] * ranks, twice
    assert (twice["losses"], twice["weights"]) == (report["whole"]["losses"], report["whole"]["weights"])
    early = report["early"]
    assert early["codes"] == [143] * ranks, early
    assert max(early["seconds"]) < 4, early
    assert all(re.search(r"error: stopped by SIGTERM, at once", output) for output in early["output"])


def test_one_process(tmp_path):
    check(reported(tmp_path, 3, 1, "1"), 3, 1, "1")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_twenty_times(tmp_path, ranks):
    seed = os.environ.get("MS4_STOP_SEED", str(random.randrange(10**6)))
    check(reported(tmp_path, 20, ranks, seed), 20, ranks, seed)
