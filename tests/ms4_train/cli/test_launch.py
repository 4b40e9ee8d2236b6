"""Ranks of one machine: their environment, output and signals, and how all of them end. The ranks are ``support.launched_rank``."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.distributed import ROOT

from ms4_train.cli.launch import launch, rank_environment, require_launchable
from ms4_train.errors import ParallelError

RANK = str(ROOT / "tests" / "support" / "launched_rank.py")
OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")


def command(folder, ranks, *arguments, others="10.0"):
    """A process that launches."""
    code = (
        "import sys\nfrom ms4_train.cli import launch\n"
        f"launch.OTHERS_SECONDS = {others}\n"
        f"sys.exit(launch.launch({[str(folder), *arguments]!r}, {ranks}, program=({RANK!r},)))"
    )
    return [sys.executable, "-c", code]


def environment():
    return {name: value for name, value in os.environ.items() if name not in OWN} | {"PYTHONPATH": str(ROOT)}


def run(folder, ranks, *arguments, **keys):
    done = subprocess.run(
        command(folder, ranks, *arguments, **keys), env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def started(folder, ranks, *arguments):
    """A launcher whose ranks all wait; gives (process, ids of the ranks)."""
    process = subprocess.Popen(command(folder, ranks, *arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while len(list(folder.glob("pid-*"))) < ranks and time.monotonic() < deadline:
            time.sleep(0.02)
        yield process, [int((folder / f"pid-{rank}").read_text()) for rank in range(ranks)]
    finally:
        process.kill()
        process.communicate()


def is_running(process):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until_gone(processes, seconds):
    deadline = time.monotonic() + seconds
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [process for process in processes if is_running(process)]


def test_every_rank_knows_its_place_and_rank_0_speaks_for_all(tmp_path):
    code, out, err = run(tmp_path, 2, "environment")
    assert code == 0
    told = [json.loads((tmp_path / f"environment-{rank}.json").read_text()) for rank in range(2)]
    for rank, one in enumerate(told):
        assert (one["RANK"], one["LOCAL_RANK"], one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"]) == (str(rank), str(rank), "2", "2")
        assert (one["MASTER_ADDR"], one["input"]) == ("127.0.0.1", "")
        assert one["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert told[0]["MASTER_PORT"] == told[1]["MASTER_PORT"]
    assert out == "from 0\n"
    assert sorted(err.splitlines()) == ["[rank 1] from 1", "the same from all"]


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")
    made = rank_environment(0, 2, 1234)
    assert (made["OMP_NUM_THREADS"], made["GLOO_SOCKET_IFNAME"], made["MASTER_PORT"]) == ("7", "eth9", "1234")


@pytest.mark.parametrize(
    ("codes", "expected", "message"),
    [
        ("0,0,0", 0, []),
        ("2,2,2", 2, ["error: it broke."]),
        ("76,2,76", 2, ["error: it broke."]),
        ("76,75,76", 75, ["error: it broke."]),
        ("76,76,76", 76, ["error: it broke."]),
        ("76,-9,76", 137, ["error: it broke.", "error: rank 1 was ended by SIGKILL."]),
        ("0,-11,0", 139, ["error: rank 1 was ended by SIGSEGV."]),
        ("143,143,143", 143, ["error: it broke."]),
    ],
)
def test_the_exit_code_is_that_of_the_rank_that_failed_first(tmp_path, codes, expected, message):
    code, _, err = run(tmp_path, 3, "codes", codes)
    assert code == expected
    assert [line.removeprefix("[rank 2] ").removeprefix("[rank 1] ") for line in sorted(err.splitlines())] == message


def test_the_others_are_ended_when_one_fails(tmp_path):
    begin = time.monotonic()
    code, _, _ = run(tmp_path, 3, "one fails", others="0.5")
    assert code == 3
    assert time.monotonic() - begin < 20
    assert until_gone([int(path.read_text()) for path in tmp_path.glob("pid-*")], 1) == []


def test_a_stopped_rank_is_ended_soon_and_does_not_count(tmp_path):
    begin = time.monotonic()
    code, _, _ = run(tmp_path, 2, "one stops", others="60.0")
    assert code == 76
    assert time.monotonic() - begin < 30  # a second, and a slow machine; not the minute that others have after an error
    assert until_gone([int((tmp_path / "pid-1").read_text())], 1) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_once_and_they_may_take_their_time(tmp_path, number):
    with started(tmp_path, 2, "polite") as (process, ranks):
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        for rank in range(2):
            assert json.loads((tmp_path / f"signals-{rank}.json").read_text()) == [number]
        assert until_gone(ranks, 1) == []


def test_a_second_interrupt_ends_stubborn_ranks(tmp_path):
    with started(tmp_path, 2, "stubborn") as (process, ranks):
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        assert all(map(is_running, ranks))
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert time.monotonic() - begin < 5  # two seconds, and a slow machine
        assert json.loads((tmp_path / "signals-1.json").read_text()) == [signal.SIGINT] * 2
        assert until_gone(ranks, 1) == []


def test_no_rank_outlives_a_killed_launcher(tmp_path):
    with started(tmp_path, 2, "stubborn") as (process, ranks):
        assert all(map(is_running, ranks))
        process.kill()
        assert until_gone(ranks, 5) == []


def test_rank_0_keeps_the_terminal_and_its_width(tmp_path):
    parent, child = pty.openpty()
    subprocess.run(["stty", "cols", "91"], stdin=child, check=True)
    done = subprocess.Popen(command(tmp_path, 2, "size"), env=environment(), stdin=child, stdout=child, stderr=child)
    os.close(child)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while data := os.read(parent, 4096):
            seen += data
    os.close(parent)
    assert done.wait(20) == 0
    assert b"columns 91 True" in seen
    assert b"[rank 1] columns None False" in seen


def test_output_and_errors_to_one_place_keep_their_order(tmp_path):
    done = subprocess.run(
        command(tmp_path, 2, "turns"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=True
    )
    assert done.stdout.split() == [b"%d" % turn for turn in range(20)]


def test_refusals(monkeypatch):
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    require_launchable(1)
    for nproc in (0, -3):
        with pytest.raises(ParallelError, match="at least one process"):
            launch(["--version"], nproc)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParallelError, match=r"--nproc: this process is already one of several: RANK and WORLD_SIZE are set.*torchrun"):
        require_launchable(2)


def test_light_enough_for_a_launcher():
    code = "import sys, ms4_train.cli.launch; print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
