"""Threads that work off a list in order, and stop together at the first failure or Ctrl-C.

Exercise it: ``pytest tests/ms4_train/weights/convert/test_crew.py``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


class Stopped(Exception):
    """Raised inside a thread's work to end it, because another one failed; never leaves this module's ``work_off``."""


def work_off(items: Iterable[T], work: Callable[[T], None], threads: int, stop: threading.Event) -> None:
    """Call ``work`` for every item, on ``threads`` threads, each of which keeps torch to itself.

    Args:
        items: taken in order.
        work: may raise ``Stopped`` once ``stop`` is set.
        threads: at least one.
        stop: set at the first failure.

    Raises:
        BaseException: the first that ``work`` raised; or KeyboardInterrupt, once the threads have ended.
    """
    waiting = iter(items)
    lock = threading.Lock()
    errors: list[BaseException] = []
    # Who is at work is counted here: a thread whose start or join was interrupted does not know it of itself (Python 3.11 then calls
    # a running thread ended, and refuses to join one that has not begun).
    entered: list[None] = []
    left: list[None] = []

    def worker() -> None:
        entered.append(None)
        try:
            torch.set_num_threads(1)  # counts for this thread and for threads that start later
            while not stop.is_set():
                with lock:
                    found = next(waiting, None)
                if found is None:
                    return
                work(found)
        except Stopped:
            return
        except BaseException as error:
            errors.append(error)
            stop.set()
        finally:
            left.append(None)

    before = torch.get_num_threads()
    crew = [threading.Thread(target=worker, name=f"convert-{number}", daemon=True) for number in range(threads)]
    try:
        for thread in crew:
            thread.start()
        for thread in crew:
            while thread.is_alive():
                thread.join(0.5)  # a join without a limit cannot be interrupted by Ctrl-C everywhere
    except BaseException:
        stop.set()  # a thread that enters from now on takes nothing
        while len(left) < len(entered):
            time.sleep(0.01)
        raise
    finally:
        torch.set_num_threads(before)
    if errors:
        raise errors[0]


def in_lanes(items: Sequence[T], file_of: Callable[[T], int], lanes: int) -> list[T]:
    """Order items so that ``lanes`` files are written side by side, each from its start: their hashes then follow side by side."""
    queues: list[list[T]] = [[] for _ in range(lanes)]
    for item in items:
        queues[file_of(item) % lanes].append(item)
    missing = object()
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*queues, fillvalue=missing))
    return [item for item in mixed if item is not missing]  # type: ignore[misc]
