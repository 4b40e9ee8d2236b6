"""Talking to a program: lines both ways, the same limits, and an end in every case."""

from __future__ import annotations

import threading
import time

import pytest

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.unsafe import UnsafeSandbox

GUESS = b"""
low, high = 1, 1000
while True:
    middle = (low + high) // 2
    print(middle, flush=True)
    answer = input()
    if answer == "right":
        break
    low, high = (middle + 1, high) if answer == "more" else (low, middle - 1)
"""
LIMITS = Limits(wall_seconds=20.0, output_bytes=1 << 20)


@pytest.fixture(params=["bubblewrap", "none"])
def any_sandbox(request, sandbox):
    if request.param == "bubblewrap":
        yield sandbox
    else:
        with UnsafeSandbox() as unsafe:
            yield unsafe


def start(sandbox, program: bytes, limits: Limits = LIMITS):
    return sandbox.start({"main.py": program}, ("-I", "-S", "main.py"), limits=limits)


def test_an_interactive_problem(any_sandbox):
    session = start(any_sandbox, GUESS)
    guesses = 0
    for _ in range(20):
        line = session.read_line(10)
        assert line is not None
        guesses += 1
        if int(line) == 737:
            session.send(b"right\n")
            break
        session.send(b"more\n" if int(line) < 737 else b"less\n")
    outcome = session.close()
    assert (outcome.status, outcome.exit_code) == ("exited", 0)
    assert guesses <= 10
    assert session.close() == outcome


def test_silence_is_not_the_end_and_the_end_is_silent(any_sandbox):
    session = start(any_sandbox, b"input()\nprint('last', end='')")
    assert session.read_line(0.1) is None
    session.send(b"\n")
    assert session.read_line(10) == b"last"
    assert session.read_line(10) is None
    # Nobody reads this any more.
    session.send(b"x" * 200_000)
    assert session.close().status == "exited"


@pytest.mark.parametrize("ends_first", [False, True])
def test_what_was_not_read_is_in_the_outcome(any_sandbox, ends_first):
    session = start(any_sandbox, b"print('a\\nb\\nc')")
    while ends_first and session.is_open:
        time.sleep(0.01)
    assert session.read_line(10) == b"a\n"
    assert session.close().stdout == b"b\nc\n"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (b"import time\ntime.sleep(60)", "wall-time"),
        (b"while True: print('x' * 1000)", "output"),
        (b"import os\nos.kill(os.getpid(), 9)", "signalled"),
        (b"while True: pass", "cpu-time"),
    ],
)
def test_limits_hold(any_sandbox, program, status):
    limits = Limits(wall_seconds=0.5 if status == "wall-time" else 20.0, cpu_seconds=0.2, output_bytes=1 << 16)
    begun = time.monotonic()
    session = start(any_sandbox, program, limits)
    # A program that reads nothing cannot hold the sender, once its pipe is full, for longer than it lives.
    session.send(b"x" * 200_000)
    assert session.close().status == status
    assert time.monotonic() - begun < 15


def test_a_session_outlives_the_thread_that_started_it(any_sandbox):
    started = []
    thread = threading.Thread(target=lambda: started.append(start(any_sandbox, b"print(input())")))
    thread.start()
    thread.join()
    time.sleep(0.2)
    (session,) = started
    session.send(b"still here\n")
    assert session.read_line(10) == b"still here\n"
    assert session.close().exit_code == 0


def test_closing_the_sandbox_ends_its_sessions():
    with UnsafeSandbox() as unsafe:
        session = start(unsafe, b"import time\ntime.sleep(60)", Limits(wall_seconds=60))
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    assert not session.is_open
