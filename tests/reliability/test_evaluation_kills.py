"""``ms4 eval run`` killed with SIGKILL wherever it is, interrupted, and started twice: nothing is lost, repeated, left behind or changed.

Every run is a process of its own against a server in another one; ``support/evaluation_kills.py`` drives them. What differs between runs
is only when they die, so the report must come out byte for byte as that of a run that nobody disturbed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.evaluation_kills import SIZES, environment, held, write_configuration, write_questions
from support.flaky_server import flaky_process, server_stats

from ms4_train.errors import EvaluationError

pytestmark = pytest.mark.usefixtures("sandboxed")
MS4 = [sys.executable, "-m", "ms4_train.cli"]


def python(*arguments: str, seconds: float = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=environment(), capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module", params=["small", pytest.param("large", marks=pytest.mark.slow)])
def outcome(request, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """An undisturbed evaluation and a killed one: of 60 samples with three kills, of 300 with twenty."""
    folder = tmp_path_factory.mktemp(f"kills-{request.param}")
    done = python("-m", "support.evaluation_kills", str(folder), request.param)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads(done.stdout) | {"kills": SIZES[request.param].kills}


def test_every_kill_fell_into_the_run_and_into_its_phase(outcome):
    _, result = outcome
    *killed, last = result["killed"]
    assert [attempt["phase"] for attempt in killed] == list(result["kills"])
    assert [attempt["code"] for attempt in killed] == [-signal.SIGKILL] * len(killed)
    assert (last["code"], [attempt["code"] for attempt in result["straight"]]) == (0, [0])
    planned, opinions = result["planned"], result["straight"][0]["opinions"]
    for attempt in killed:
        is_drawn, is_graded = attempt["holds"] == planned, attempt["verdicts"] == planned
        match attempt["phase"]:
            case "drawing":
                assert attempt["held"] < attempt["holds"]
            case "grading":
                assert is_drawn
            case "opinions":
                assert is_drawn
                assert is_graded
                assert attempt["opinions"] > 0
            case "report":
                assert attempt["opinions"] == opinions
    assert any(attempt["phase"] == "grading" and attempt["verdicts"] < planned for attempt in killed)
    assert any(attempt["phase"] == "opinions" and attempt["opinions"] < opinions for attempt in killed)


def test_no_finished_sample_is_drawn_twice_and_none_is_lost(outcome):
    """The server counts: what was asked for again is exactly what was in flight at the kills."""
    _, result = outcome
    planned, lost = result["planned"], 0
    for attempt in result["killed"]:
        assert attempt["kept"], f"a stored sample or verdict changed: {attempt}"
        in_flight = attempt["asked"] - (attempt["holds"] - attempt["held"])
        assert 0 <= in_flight <= result["concurrency"]
        lost += in_flight
    server = result["killed_server"]
    assert (server["requests"], server["attempts"]) == (planned, planned + lost)
    assert result["killed"][-1]["holds"] == result["killed"][-1]["verdicts"] == planned
    assert result["straight_server"]["attempts"] == planned


def test_a_kill_leaves_no_process_and_no_lock(outcome):
    _, result = outcome
    for attempt in (*result["straight"], *result["killed"]):
        assert attempt["left"] == []
        assert attempt["is_free"]


def test_the_report_equals_that_of_an_undisturbed_run_byte_for_byte(outcome):
    folder, result = outcome
    killed, straight = (
        {path.name: path.read_bytes() for path in (folder / f"{name}-reports").iterdir() if not path.name.startswith(".")}
        for name in ("killed", "straight")
    )
    assert killed == straight
    assert {name.rpartition(".")[2] for name in killed} == {"json", "md", "png"}
    (report,) = (json.loads(data) for name, data in killed.items() if name.endswith(".json"))
    assert report["complete"]
    modes = [mode for task in report["tasks"] for mode in task["modes"]]
    assert sum(mode["graded"] for mode in modes) == result["planned"]
    verdicts = {verdict for mode in modes for verdict, count in mode["verdicts"].items() if count}
    assert {"correct", "wrong"} <= verdicts


def test_every_seal_holds(outcome):
    _, result = outcome
    assert result["killed_records"] == result["straight_records"] == 2 * result["planned"]


ORPHAN = """
import subprocess
from support.evaluation_kills import adopt_orphans, left_behind
adopt_orphans()
subprocess.run(["sh", "-c", "sleep 60 & kill -9 $$"])
print(left_behind(set(), 0.3))
"""


@pytest.mark.slow
def test_control_what_a_killed_process_leaves_behind_is_seen():
    assert python("-c", ORPHAN).stdout == "['sleep 60 ']\n"


LAUNCHING = """
import random, subprocess, sys, time
from support.evaluation_kills import adopt_orphans, left_behind
RUNS = '''
import sys
from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.opening import _started
sandbox = _started()
print("ready", flush=True)
sys.stdin.readline()
sandbox.run({"main.py": b"import time; time.sleep(3000)"}, ("-I", "main.py"), limits=Limits(wall_seconds=3000))
'''
adopt_orphans()
generator, left = random.Random(0), []
for _ in range(40):
    process = subprocess.Popen([sys.executable, "-c", RUNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdin.write(b"go\\n")
    process.stdin.flush()
    time.sleep(generator.uniform(0, 0.04))
    process.kill()
    process.wait()
    left += left_behind({process.pid}, 2.0)
print(left)
"""


@pytest.mark.slow
def test_a_kill_while_a_sandbox_is_being_started_leaves_nothing():
    """For some forty milliseconds; told to die with its parent, bubblewrap left a process that waited for ever after one kill in seven."""
    done = python("-c", LAUNCHING)
    assert done.stdout == "[]\n", done.stderr


HANGING = r"""
import os, subprocess, sys, time
from support.evaluation_kills import adopt_orphans, left_behind
ASKS = '''
from ms4_evals.graders.second_opinion import SecondOpinion
with SecondOpinion() as second:
    second.ask("\\\\boxed{1}", "1")
    print("ready", flush=True)
    second.ask("\\\\boxed{9^{9^{9^9}}}", "1")
'''
adopt_orphans()
process = subprocess.Popen([sys.executable, "-c", ASKS], stdout=subprocess.PIPE)
process.stdout.readline()
time.sleep(0.5)
assert process.poll() is None
process.kill()
process.wait()
print(left_behind({process.pid}, 2.0))
"""


@pytest.mark.slow
def test_a_kill_while_an_answer_keeps_math_verify_busy_leaves_nothing():
    done = python("-c", HANGING)
    assert done.stdout == "[]\n", done.stderr


def start(folder: Path, values: dict[str, Any]) -> tuple[subprocess.Popen[str], Path]:
    store, file = folder / "r.sqlite", folder / "run.yaml"
    file.write_text(json.dumps(values | {"store": str(store)}))
    process = subprocess.Popen(
        [*MS4, "eval", "run", str(file)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return process, store


def wait_for(store: Path, samples: int, verdicts: int = 0) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = held(store)
        if len(found.samples) >= samples and len(found.verdicts) >= verdicts:
            return
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


@pytest.mark.slow
def test_a_second_runner_is_refused_at_once_and_ctrl_c_once_keeps_all_that_was_finished(tmp_path):
    size = SIZES["small"]
    table = write_questions(tmp_path, size)
    with flaky_process("--table", str(table), "--seconds", "0.5") as base_url:
        process, store = start(tmp_path, write_configuration(tmp_path, size, base_url, None))
        wait_for(store, 4)
        begun = time.monotonic()
        second = python("-m", "ms4_train.cli", "eval", "run", str(tmp_path / "run.yaml"))
        assert second.returncode == EvaluationError("").exit_code
        assert f"another evaluation is writing to this store (process {process.pid})" in second.stderr
        assert "Traceback" not in second.stderr
        assert time.monotonic() - begun < 15
        assert process.poll() is None, "the first one works on"
        finished = held(store)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.wait(30) == 130
        assert time.monotonic() - begun < 5
        after = held(store)
        assert all(row in after.samples for row in finished.samples)
        assert len(finished.samples) < size.planned
        asked = server_stats(base_url)["attempts"]
        third, _ = start(tmp_path, json.loads((tmp_path / "run.yaml").read_text()))
        assert third.wait(120) == 0, third.communicate()[0]
        assert server_stats(base_url)["attempts"] - asked == size.planned - len(after.samples)
        assert all(row in held(store).samples for row in after.samples)


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_programs_that_are_being_graded(tmp_path):
    """Each sleeps through fourteen tests: waited for, they took a minute and more."""
    from support.code_rows import code_row, code_test, write_rows

    size = SIZES["small"]
    table = write_questions(tmp_path, size)
    write_rows(tmp_path / "code" / "test.jsonl", [code_row("abc300_a", private=[code_test("3 4\n", "7\n")] * 12)])
    sleepy = "```python\nimport time; time.sleep(4)\na, b = map(int, input().split())\nprint(a + b)\n```"
    table.write_text(json.dumps(json.loads(table.read_text()) | {"Print the sum of two integers.": sleepy}))
    with flaky_process("--table", str(table)) as base_url:
        process, store = start(tmp_path, write_configuration(tmp_path, size, base_url, None))
        wait_for(store, 56)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.wait(60) == 130
        assert time.monotonic() - begun < 5
        found = held(store)
        assert (len(found.samples), len(found.verdicts)) == (56, 52)
