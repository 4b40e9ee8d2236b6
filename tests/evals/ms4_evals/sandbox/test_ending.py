"""From what was seen to one status: every row is a case that occurs."""

from __future__ import annotations

import signal

import pytest

from ms4_evals.sandbox.base import Limits
from ms4_evals.sandbox.ending import Seen, decide

LIMITS = Limits(wall_seconds=2.0, cpu_seconds=1.0, memory_bytes=100 << 20)
NUMPY = b"Traceback\nnumpy._core._exceptions._ArrayMemoryError: Unable to allocate 8.00 TiB for an array with shape (1,)\n"


def seen(wait_status=0, *, stop=None, flooded=False, wall=0.1, cpu=0.1, peak=10 << 20, stderr=b"", ran_out=False):
    return Seen(stop, wait_status, flooded, wall, cpu, peak, stderr, ran_out)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (seen(), ("exited", 0, None)),
        (seen(1 << 8), ("exited", 1, None)),
        (seen(139 << 8), ("exited", 139, None)),
        (seen(11), ("signalled", None, 11)),
        (seen(11 | 128), ("signalled", None, 11)),
        (seen(None), ("sandbox-error", None, None)),
        # The watcher's own reason comes before whatever the kill looks like.
        (seen(9, stop="wall-time"), ("wall-time", None, None)),
        (seen(None, stop="cpu-time"), ("cpu-time", None, None)),
        (seen(None, stop="memory"), ("memory", None, None)),
        (seen(0, stop="output"), ("output", None, None)),
        (seen(None, stop="processes"), ("signalled", None, 9)),
        (seen(9, flooded=True), ("memory", None, None)),
        # Limits passed between two looks.
        (seen(0, peak=101 << 20), ("memory", None, None)),
        (seen(0, cpu=1.01), ("cpu-time", None, None)),
        (seen(0, wall=2.01), ("wall-time", None, None)),
        (seen(int(signal.SIGXCPU)), ("cpu-time", None, None)),
        # Crashes for want of memory, and others.
        (seen(11, peak=95 << 20), ("memory", None, None)),
        (seen(6, peak=95 << 20), ("memory", None, None)),
        (seen(15, peak=95 << 20), ("signalled", None, 15)),
        (seen(9, peak=10 << 20), ("signalled", None, 9)),
        # Killed by a kernel that wanted the memory for others: no fault of the program's, unless it had nearly all of its own.
        (seen(9, ran_out=True), ("sandbox-error", None, None)),
        (seen(9, peak=95 << 20, ran_out=True), ("memory", None, None)),
        (seen(11, ran_out=True), ("signalled", None, 11)),
        (seen(0, ran_out=True), ("exited", 0, None)),
        # What Python says when an allocation is refused.
        (seen(1 << 8, stderr=b"Traceback (most recent call last):\nMemoryError\n"), ("memory", None, None)),
        (seen(1 << 8, stderr=b"Traceback\nMemoryError: x\n"), ("memory", None, None)),
        (seen(1 << 8, stderr=NUMPY), ("memory", None, None)),
        (seen(1 << 8, stderr=b"MemoryError\nValueError: x\n"), ("exited", 1, None)),
        (seen(1 << 8, stderr=b"ValueError: MemoryError\n"), ("exited", 1, None)),
        (seen(1 << 8, stderr=b"MyMemoryError\n"), ("exited", 1, None)),
        # A program cannot talk itself out of success, or into another class, with words alone.
        (seen(0, stderr=b"MemoryError\n"), ("exited", 0, None)),
        (seen(2 << 8, stderr=b"MemoryError\n"), ("exited", 2, None)),
    ],
)
def test_decide(what, expected):
    assert decide(what, LIMITS) == expected
