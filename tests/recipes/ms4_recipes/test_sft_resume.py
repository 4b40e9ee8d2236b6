"""Kill -9 at any point and go on: the same bits as a run that was never disturbed, with packing and two data sets.

``tests/support/kill_runs.py`` does the training, killing and resuming once, in forks of one process; the tests look at what came of it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
EXACT = ("losses", "files", "loader")
KILLS = ["after step 13", "after the last step", "in half a file", "before the manifest", "before the rename", "before pruning"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    import os

    paths = [str(REPOSITORY / name) for name in (".", "kernels", "recipes", "evals", "tests")]
    done = subprocess.run(
        [sys.executable, "-m", "support.kill_runs", str(tmp_path_factory.mktemp("kills"))],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def difference(left, right):
    return [key for key in EXACT if left[key] != right[key]]


def test_the_undisturbed_run_is_whole(results):
    assert results["straight"]["code"] == 0
    assert [row[0] for row in results["straight"]["losses"]] == list(range(1, 21))
    assert set(results["straight"]["files"]) == {"rank-00000-000.safetensors", "rank-00000.json", "model.safetensors"}


@pytest.mark.parametrize("name", KILLS)
def test_kill_and_resume_gives_the_same_bits(results, name):
    run = results["kills"][name]
    assert run["killed"] == -9
    assert run["resumed"] == 0
    assert "step-000010" in run["left"]
    assert difference(run, results["straight"]) == []
    assert run["folders"] == ["step-000010", "step-000020"]


def test_kills_hit_the_points_they_are_named_after(results):
    left = {name: results["kills"][name]["left"] for name in KILLS}
    assert left["after step 13"] == left["after the last step"] == ["step-000010"]
    assert left["before the manifest"] == left["before the rename"] == left["in half a file"] == [".tmp-step-000020", "step-000010"]
    assert left["before pruning"] == ["step-000010", "step-000020"]


def test_dropout_goes_on_with_its_own_random_numbers(results):
    assert results["lora killed"]["killed"] == -9
    assert difference(results["lora killed"], results["straight lora"]) == []
    assert set(results["straight lora"]["files"]) > {"adapter_model.safetensors"}


@pytest.mark.parametrize("name", ["fp8 killed", "fp8 resumed dequantised"])
def test_an_adapter_on_frozen_fp8_weights_goes_on_with_the_same_bits(results, name):
    """Whether the base is kept quantised changes memory, not values, so a resumed run may change it."""
    assert results["straight fp8"]["code"] == 0
    assert results[name]["killed"] == -9
    assert results[name]["resumed"] == 0
    assert difference(results[name], results["straight fp8"]) == []
    assert results["straight fp8"]["losses"][-1][1] != results["straight lora"]["losses"][-1][1]


@pytest.mark.parametrize(
    ("changed", "reference"),
    [("other loader state", "straight"), ("forgotten carry-over", "straight"), ("other random state", "straight lora")],
)
def test_without_its_state_the_resumed_run_differs(results, changed, reference):
    """Negative controls: each part of the state is needed, and the tests above can fail."""
    assert results[changed]["resumed"] == 0
    found = difference(results[changed], results[reference])
    assert {"losses", "files"} <= set(found)
    # What was done before the save is the same; only what follows differs.
    assert results[changed]["losses"][:10] == results[reference]["losses"][:10]


def test_sigterm_finishes_the_step_saves_and_the_run_goes_on(results):
    run = results["signalled"]
    assert run["code"] == 128 + 15
    assert run["left"] == ["step-000007"]
    assert run["resumed"] == 0
    assert difference(run, results["straight"]) == []


def test_another_configuration_is_refused(results):
    assert results["other configuration"] == 2
