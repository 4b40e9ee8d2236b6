"""What a tree uses, beside psutil's numbers, and that nothing of a tree survives its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.launch import keeper_command
from ms4_evals.sandbox.processes import (
    can_list_children,
    children,
    descendants,
    end_tree,
    measure,
    process_allowance,
    tasks_of,
)

TREE = """
import os, sys, threading, time
for _ in range(2):
    if not os.fork():
        kept = bytearray(b"x") * (30 << 20)
        end = time.process_time() + 0.15
        while time.process_time() < end:
            pass
        sys.stdout.write(f"{os.getpid()}\\n")
        sys.stdout.flush()
        time.sleep(60)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(os.getpid(), flush=True)
time.sleep(60)
"""

HIDING = """
import os, time
for _ in range(3):
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        break
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def tree():
    """Starts a program below a keeper; returns the keeper and the numbers that ``lines`` of its output begin with."""
    started = []

    def start(program: str, lines: int) -> tuple[subprocess.Popen[bytes], list[int]]:
        read_end, write_end = os.pipe()
        command = keeper_command(
            sys.executable,
            write_end,
            Limits(),
            [sys.executable, "-I", "-S", "-c", program],
            is_isolated=False,
            processes=tasks_of(os.geteuid()) + 50,
        )
        process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[write_end])
        os.close(write_end)
        started.append((process, read_end))
        assert process.stdout is not None
        return process, [int(process.stdout.readline()) for _ in range(lines)]

    yield start
    for process, read_end in started:
        end_tree(process.pid)
        process.wait(5)
        os.close(read_end)
        process.stdout.close()


def test_a_tree_is_measured_as_psutil_measures_it(tree):
    keeper, numbers = tree(TREE, 3)
    assert sorted(descendants(keeper.pid)) == sorted(numbers)
    assert children(keeper.pid) == [next(number for number in numbers if psutil.Process(number).ppid() == keeper.pid)]
    usage = measure(keeper.pid, 1 << 40)
    processes = [psutil.Process(number) for number in numbers]
    assert usage.resident_bytes == pytest.approx(sum(process.memory_info().rss for process in processes), rel=0.01)
    assert usage.resident_bytes > 60 << 20
    assert usage.tasks == 4
    # Two children spun for 0.15 s each, counted in ticks of a hundredth; starting takes a little.
    assert 0.25 < usage.cpu_seconds < 1.0
    shared = measure(keeper.pid, 1 << 20)
    # Divided among those that share it, libraries count once.
    assert 60 << 20 < shared.resident_bytes < usage.resident_bytes


def test_nothing_survives_the_end_of_a_tree(tree):
    keeper, numbers = tree(HIDING, 4)
    # Two generations and new sessions later they are still below the keeper.
    deadline = time.monotonic() + 10
    while set(numbers) - set(descendants(keeper.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(numbers) <= set(descendants(keeper.pid))
    end_tree(keeper.pid)
    keeper.wait(5)
    assert not any(psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE for number in numbers)


def test_a_process_that_is_gone_uses_nothing():
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as process:
        process.wait()
    usage = measure(process.pid, 1)
    assert (usage.resident_bytes, usage.cpu_seconds, usage.tasks) == (0, 0.0, 0)
    assert children(process.pid) == []


def test_the_kernel_lists_children_here():
    assert can_list_children()


def test_the_allowance_counts_the_users_processes_on_old_kernels(monkeypatch):
    assert process_allowance(8, None) == 8
    release = type("release", (), {"release": "5.10.0-28-amd64"})
    monkeypatch.setattr(os, "uname", lambda: release)
    mine = sum(process.num_threads() for process in psutil.process_iter() if process.uids().real == os.geteuid())
    # Others come and go meanwhile.
    assert process_allowance(8, None) == pytest.approx(8 + mine, abs=40)
    release.release = "6.1.0"
    assert process_allowance(8, None) == 8
