"""Conversions killed with SIGKILL at every kind of moment leave the source whole and no target, and go on to the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    paths = ":".join(str(REPOSITORY / part) for part in ("", "tests", "kernels"))
    done = subprocess.run(
        [sys.executable, "-m", "support.conversion_kills", str(folder)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout) | {"stderr": done.stderr}


def test_every_kill_goes_on_to_the_same_bytes(runs):
    assert runs["straight"] == 0
    for name, run in runs["kills"].items():
        assert run["killed"] == -9, name
        assert run["source whole"], name
        assert run["target was there"] == (name == "after the rename"), name
        assert run["sums"] == runs["sums"], name
        if name != "after the rename":
            assert run["resumed"] == 0, name
            assert run["beside"] == ["out", "result.json", "source", "straight"], name
    assert runs["kills"]["after the rename"]["resumed"] == 2  # the target is whole and is not written over


def test_only_what_was_not_journaled_is_written_again(runs):
    total = runs["outcome"]["items"]
    assert runs["outcome"]["written"] == total
    written = {name: run["outcome"]["written"] for name, run in runs["kills"].items() if run["outcome"]}
    for name in ("before the files", "before the journal", "before the first item"):
        assert written[name] == total
    for name in ("before a flush", "before a line", "in half a line", "after a line"):
        assert 0 < written[name] < total, name
    # Lines 2 to 4 and 2 to 8 of the journal: batches of 8 items.
    assert written["before a line"] == total - 3 * 8
    assert written["in half a line"] == total - 4 * 8
    assert written["after a line"] == total - 7 * 8
    assert written["before the sums"] == written["before the rename"] == 0


def test_other_arguments_and_a_changed_source_start_anew(runs):
    assert "arguments" in runs["other arguments"]["outcome"]["restarted"]
    assert runs["other arguments"]["outcome"]["written"] == runs["outcome"]["items"]
    assert "source has changed" in runs["changed source"]["outcome"]["restarted"]
    assert runs["changed source"]["outcome"]["written"] == runs["outcome"]["items"]
    assert runs["changed source"]["sums"] == runs["sums"]
    assert runs["not resumed"]["outcome"]["written"] == runs["outcome"]["items"]
    assert runs["not resumed"]["sums"] == runs["sums"]


def test_ctrl_c_keeps_what_is_done(runs):
    run = runs["interrupted"]
    assert run["killed"] == 70  # the fork's word for an exception: KeyboardInterrupt went through
    assert "the same command goes on" in runs["stderr"]
    assert not run["target was there"]
    assert run["resumed"] == 0
    assert run["outcome"]["written"] <= runs["outcome"]["items"] - 30
    assert run["sums"] == runs["sums"]


def test_a_line_before_its_data_would_be_seen(runs):
    """Negative control: had a journal named items that are not on the disk, the files would differ from the straight run's."""
    assert runs["forged"]["resumed"] == 0
    assert runs["forged"]["outcome"]["written"] == runs["outcome"]["items"] - 3
    assert runs["forged"]["sums"] != runs["sums"]
