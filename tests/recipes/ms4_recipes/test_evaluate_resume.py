"""A real model, evaluated, killed with SIGKILL wherever it hurts, and started again: the same report byte for byte, nothing repeated."""

import json
import os
import subprocess
import sys

import pytest
from support.distributed import ROOT


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    paths = [str(ROOT / name) for name in (".", "kernels", "recipes", "evals", "tests")]
    done = subprocess.run(
        [sys.executable, "-m", "support.eval_kills", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout)


PLANNED = (5 + 4) * 2 * 2


def test_the_processes_really_were_killed(outcome):
    codes = {attempt["name"]: attempt["code"] for attempt in outcome[1]["attempts"]}
    assert codes == {"in the third sample": -9, "from outside": -9, "after the first opinions": -9, "to the end": 0, "once more": 0}


def test_each_start_goes_on_and_repeats_no_finished_sample(outcome):
    attempts = outcome[1]["attempts"]
    assert attempts[0]["holds"] == 2, "the third sample was in its transaction, not committed"
    assert attempts[1]["held"] == 2
    assert 6 <= attempts[1]["holds"] < PLANNED
    assert [attempt["holds"] for attempt in attempts[2:]] == [PLANNED] * 3
    assert all(attempt["kept"] for attempt in attempts), "a stored sample was drawn again or changed"


def test_the_report_equals_that_of_an_undisturbed_run_byte_for_byte(outcome):
    folder, result = outcome
    assert (result["straight"], result["straight_rows"]) == (0, PLANNED)
    killed = {path.name: path.read_bytes() for path in (folder / "killed-reports").iterdir()}
    straight = {path.name: path.read_bytes() for path in (folder / "straight-reports").iterdir()}
    assert killed == straight
    assert {name.rpartition(".")[2] for name in killed} == {"json", "md", "png"}
    (report,) = (json.loads(data) for name, data in killed.items() if name.endswith(".json"))
    assert report["complete"]
    assert sum(mode["graded"] for task in report["tasks"] for mode in task["modes"]) == PLANNED
