"""Ranks as threads of one process, for checks that only tell each other JSON values: no gloo, no start, a few milliseconds.

A thread that does not come leaves the others waiting; they fail after a few seconds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ms4_train.parallel import Mesh

WAIT_SECONDS = 10.0


class ThreadMesh(Mesh):
    """A rank's place among threads. ``expert_parallel_group`` is something: others are there to be met."""

    def __init__(self, rank: int, ranks: int, barrier: threading.Barrier, board: list[str]) -> None:
        super().__init__(rank, ranks, expert_parallel_group=object())  # type: ignore[arg-type]
        object.__setattr__(self, "_barrier", barrier)
        object.__setattr__(self, "_board", board)

    def all_gather_json(self, value: Any) -> list[Any]:
        """As of ``Mesh``."""
        self._board[self.rank] = json.dumps(value)
        self._barrier.wait(WAIT_SECONDS)
        everyone = [json.loads(text) for text in self._board]
        self._barrier.wait(WAIT_SECONDS)
        return everyone


def on_threads(work: Callable[[Mesh], Any], ranks: int = 2) -> list[Any]:
    """What ``work(mesh)`` returns or raises on each rank."""
    barrier, board = threading.Barrier(ranks), [""] * ranks

    def run(rank: int) -> Any:
        try:
            return work(ThreadMesh(rank, ranks, barrier, board))
        except Exception as error:
            return error

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))
