"""``ms4 COMMAND --nproc N``: the same command as N ranks on this machine, as torchrun would start them, in one process group each.

What is different from torchrun: it needs no torch itself, Ctrl-C reaches each rank once, rank 0 keeps its terminal and the lines of other
ranks are marked, a rank that fails ends all of them within ten seconds, and the exit code is that rank's own. No rank outlives this
process, however it ends. Several machines: torchrun or SLURM (configs/launch).
Exercise it: ``ms4 train configs/train/tiny_full.yaml --nproc 2``, or ``pytest tests/ms4_train/cli/test_launch.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from ms4_train.cli.launch_output import Screen
from ms4_train.errors import ParallelError, RankLostError

OTHERS_SECONDS = 10.0
"""For the other ranks to end when one failed."""
LOST_SECONDS = 1.0
"""The same when a rank ended because another one was lost: those that live heard of it too, and a rank that hangs hears nothing."""
SECOND_SIGNAL_SECONDS = 2.0
"""For the ranks to end at a second Ctrl-C."""
POLL_SECONDS = 0.05
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_PR_SET_PDEATHSIG = 1
MS4 = ("-m", "ms4_train.cli")


def launch(arguments: list[str], nproc: int, *, program: Sequence[str] = MS4) -> int:
    """Run ``ms4 ARGUMENTS`` in ``nproc`` processes and wait for them.

    Args:
        arguments: without the program's name, and without ``--nproc``.
        nproc: 1 or more.
        program: what Python runs with these arguments: a script, or ``-m`` and a module.

    Returns:
        0, or the exit code of the rank that failed first: that of its error, or 128 plus the signal's number where one killed it. The code
        of a rank that ended because another one was lost (76) counts only where there is no other.

    Raises:
        ParallelError: ``nproc`` is below 1, or this process is itself a rank of some launcher.
    """
    require_launchable(nproc)
    screen = Screen()
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        with _signals_forwarded(ranks) as received:
            port = _free_port()
            for rank in range(nproc):
                ranks.append(_start([*program, *arguments], rank, nproc, port, screen))
            return _wait(ranks, received)
    finally:
        _kill(ranks)
        screen.close(2.0)
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a rank that was killed under a progress bar leaves the cursor hidden


def require_launchable(nproc: int) -> None:
    """Refuse what cannot be launched.

    Raises:
        ParallelError: ``nproc`` is below 1, or this process is itself a rank of some launcher.
    """
    if nproc < 1:
        raise ParallelError(f"is {nproc}; at least one process is needed.", key="--nproc", fix="give the number of GPUs, or of CPU ranks.")
    present = [name for name in _OF_A_LAUNCHER if name in os.environ]
    if present:
        raise ParallelError(
            f"this process is already one of several: {' and '.join(present)} {'is' if len(present) == 1 else 'are'} set.",
            key="--nproc",
            fix="leave --nproc out under torchrun, accelerate or SLURM, which start the processes themselves; or unset these variables.",
        )


def rank_environment(rank: int, nproc: int, port: int) -> dict[str, str]:
    """What a rank reads: its place, where the ranks meet, and how many threads it may use."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    shared = {"OMP_NUM_THREADS": str(max(1, _cores() // nproc)), "GLOO_SOCKET_IFNAME": loopback}
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return {**shared, **os.environ, **own}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(arguments: list[str], rank: int, nproc: int, port: int, screen: Screen) -> subprocess.Popen[bytes]:
    out, err = _outlets(rank)
    try:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=rank_environment(rank, nproc, port),
            stdin=subprocess.DEVNULL,
            stdout=out.inner,
            stderr=err.inner,
            start_new_session=True,  # a terminal's Ctrl-C is for the launcher, which hands it on once
            preexec_fn=_dies_with(os.getpid()),
        )
    finally:
        for target, outlet in ((1, out), (2, err)):
            if target == 1 or err is not out:
                os.close(outlet.inner)
                screen.show(rank, outlet.outer, target)


class _Outlet:
    """A pair of descriptors: ``inner`` for the rank, ``outer`` to read from. A terminal in the place of a pipe where ``like`` is one."""

    def __init__(self, like: int | None) -> None:
        if like is None:
            self.outer, self.inner = os.pipe()
            return
        self.outer, self.inner = os.openpty()
        tty.setraw(self.inner)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.inner, termios.TIOCSWINSZ, fcntl.ioctl(like, termios.TIOCGWINSZ, b"\0" * 8))
        for end in (self.outer, self.inner):
            os.set_inheritable(end, False)


def _outlets(rank: int) -> tuple[_Outlet, _Outlet]:
    """Of standard output and standard error; one for both where both go to one terminal, pipe or file, so that their order stays."""
    terminals = [rank == 0 and os.isatty(target) for target in (1, 2)]
    out = _Outlet(1 if terminals[0] else None)
    is_one = all(terminals) or os.path.sameopenfile(1, 2)
    return out, out if is_one else _Outlet(2 if terminals[1] else None)


def _dies_with(parent: int) -> Callable[[], None]:
    """What a rank does before it starts: ask the kernel for SIGKILL when the launcher is gone."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def ask() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it was gone before the kernel was asked
                os._exit(1)

    return ask


@contextlib.contextmanager
def _signals_forwarded(ranks: list[subprocess.Popen[bytes]]) -> Iterator[list[tuple[int, float]]]:
    """Hand SIGTERM and SIGINT on, once each time; gives the list of (signal, time) that came."""
    received: list[tuple[int, float]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append((number, time.monotonic()))
        for process in tuple(ranks):
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen[bytes]], received: list[tuple[int, float]]) -> int:
    """Until all ranks have ended, or one failed and the others had their time; returns the exit code."""
    failed: dict[int, int] = {}
    deadline = float("inf")
    while any(process.poll() is None for process in ranks):
        _note(ranks, failed)
        now = time.monotonic()
        # Ranks that were asked to end have agreed on the step; what rank 0 still does then (tracking) may take its time.
        asked = {128 + number for number, _ in received}
        codes = set(failed.values()) - asked
        if deadline == float("inf") and codes:
            deadline = now + (LOST_SECONDS if codes == {RankLostError.exit_code} else OTHERS_SECONDS)
        interrupts = [then for number, then in received if number == signal.SIGINT]
        if len(received) > 1 and interrupts:
            deadline = min(deadline, max(interrupts[-1], received[1][1]) + SECOND_SIGNAL_SECONDS)
        if now >= deadline:
            break
        time.sleep(POLL_SECONDS)
    _note(ranks, failed)
    if not failed:
        stuck = any(process.poll() is None for process in ranks)
        return 128 + received[-1][0] if stuck and received else 0
    first = next((rank for rank, code in failed.items() if code != RankLostError.exit_code), next(iter(failed)))
    code = failed[first]
    if code < 0:
        os.write(2, f"error: rank {first} was ended by {signal.Signals(-code).name}.\n".encode())
    return 128 - code if code < 0 else code


def _note(ranks: list[subprocess.Popen[bytes]], failed: dict[int, int]) -> None:
    for rank, process in enumerate(ranks):
        if process.poll():
            failed.setdefault(rank, process.returncode)


def _kill(ranks: list[subprocess.Popen[bytes]]) -> None:
    for process in ranks:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for process in ranks:
        process.wait()
