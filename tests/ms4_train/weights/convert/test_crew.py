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


def test_lanes_keep_the_order_within_a_file():
    items = [(file, number) for file in range(5) for number in range(file + 3)]
    mixed = in_lanes(items, lambda item: item[0], 2)
    assert sorted(mixed) == items
    for lane in (0, 1):
        assert [item for item in mixed if item[0] % 2 == lane] == [item for item in items if item[0] % 2 == lane]
    assert {item[0] for item in mixed[:4]} == {0, 1}  # two files at a time
    assert in_lanes(items, lambda item: item[0], 1) == items
