"""A run that was stopped goes on as if it had not been: bit by bit, row by row, in every combination of what may matter.

Stopped mid-epoch, where an epoch ends, and in the second one; packed or not; with and without accumulation; full training, LoRA with
dropout, images decoded by one worker and by three. Controls take a part of the state away, and must be noticed in every combination.
"""

import json
import os
import subprocess
import sys

import pytest
from support.distributed import ROOT
from support.resume_runs import STEPS, TERMINATED, variants

CONTROLS = ("without position", "without random state")


def run_variants(folder, tier, timeout):
    paths = [str(ROOT / name) for name in (".", "kernels", "recipes", "evals", "tests")]
    done = subprocess.run(
        [sys.executable, "-m", "support.resume_runs", str(folder), tier],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(reports, expected):
    assert [report["name"] for report in reports] == [variant.name for variant in expected]
    for report in reports:
        assert report["stopped"] == TERMINATED, report
        assert 0 < report["stopped at"] < STEPS, report
        assert report["left"] == [f"step-{report['stopped at']:06d}"], report
        assert report["resumed"] == {"code": 0, "differing": []}, report
        for control in CONTROLS:
            if control in report:
                assert report[control]["code"] == 0, report
                assert {"losses", "files"} <= set(report[control]["differing"]), (control, report)
        assert "rows" in report["without position"]["differing"], report


def test_stopped_runs_go_on_bit_by_bit(tmp_path):
    check(run_variants(tmp_path, "quick", 400), variants("quick"))


@pytest.mark.slow
def test_stopped_runs_go_on_bit_by_bit_in_every_combination(tmp_path):
    check(run_variants(tmp_path, "whole", 3000), variants("whole"))
