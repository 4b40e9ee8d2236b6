"""Threads take items in order, stop together at the first failure, and leave torch as it was."""

import collections
import threading
import time

import pytest
import torch

from ms4_train.weights.convert.crew import Stopped, in_lanes, work_off


@pytest.mark.parametrize("threads", [1, 4])
def test_every_item_is_worked_off_once_with_one_torch_thread(threads):
    before = torch.get_num_threads()
    done, counts = [], set()
    names = collections.Counter()

    def work(item):
        counts.add(torch.get_num_threads())
        names[threading.current_thread().name] += 1
        time.sleep(0.001)
        done.append(item)

    work_off(range(100), work, threads, threading.Event())
    assert sorted(done) == list(range(100))
    assert counts == {1}
    assert len(names) == threads
    assert torch.get_num_threads() == before


def test_the_first_failure_stops_the_others():
    stop, done = threading.Event(), []

    def work(item):
        if item == 10:
            raise OSError("disk")
        for _ in range(20):
            time.sleep(0.001)
            if stop.is_set():
                raise Stopped
        done.append(item)

    before = threading.active_count()
    with pytest.raises(OSError, match="disk"):
        work_off(range(1000), work, 4, stop)
    assert len(done) < 20
    assert threading.active_count() == before


@pytest.mark.parametrize("moment", ["before the start", "after the start", "in a join"])
def test_an_interrupt_at_any_moment_waits_for_those_at_work(monkeypatch, moment):
    """Ctrl-C in the main thread's start and join, where Python's own view of the threads is wrong afterwards."""
    stop, at_work, done = threading.Event(), set(), []
    start, join, started = threading.Thread.start, threading.Thread.join, []

    def work(item):
        at_work.add(item)
        time.sleep(0.1)
        at_work.remove(item)
        done.append(item)
        if stop.is_set():
            raise Stopped

    def interrupted_start(thread):
        started.append(thread)
        if len(started) == 2 and moment == "before the start":
            raise KeyboardInterrupt
        start(thread)
        if len(started) == 2 and moment == "after the start":
            raise KeyboardInterrupt

    def interrupted_join(thread, timeout=None):
        if moment != "in a join":
            return join(thread, timeout)
        thread._tstate_lock.release()  # what 3.11 does when a signal comes in the wait
        thread._stop()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    if hasattr(threading.Thread, "_stop"):
        monkeypatch.setattr(threading.Thread, "join", interrupted_join)
    elif moment == "in a join":
        pytest.skip("this Python's threads keep no lock of their own")
    with pytest.raises(KeyboardInterrupt):
        work_off(range(100), work, 2, stop)
    assert stop.is_set()
    assert not at_work
    time.sleep(0.2)
    assert len(done) <= 3


def test_lanes_keep_the_order_within_a_file():
    items = [(file, number) for file in range(5) for number in range(file + 3)]
    mixed = in_lanes(items, lambda item: item[0], 2)
    assert sorted(mixed) == items
    for lane in (0, 1):
        assert [item for item in mixed if item[0] % 2 == lane] == [item for item in items if item[0] % 2 == lane]
    assert {item[0] for item in mixed[:4]} == {0, 1}  # two files at a time
    assert in_lanes(items, lambda item: item[0], 1) == items
