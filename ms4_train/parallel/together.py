"""Work that all ranks wait for, and errors that all of them raise: none goes on without another.

Exercise it: ``pytest tests/ms4_train/parallel/test_together.py``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, TypeVar

from ms4_train.errors import MS4Error
from ms4_train.parallel.mesh import Mesh

T = TypeVar("T")
_INTERRUPTED = 128 + signal.SIGINT


def everyone(mesh: Mesh, work: Callable[[], T]) -> T:
    """Do something on every rank; where it fails on one, all raise. Collective.

    Args:
        mesh: of the ranks.
        work: must not meet other ranks, for one that failed would not come.

    Raises:
        MS4Error: what the work raised here, or word of the first other rank where it failed.
    """
    result, problem = None, None
    try:
        result = work()
    except MS4Error as error:
        problem = error
    told = mesh.all_gather_json(None if problem is None else error_told(problem))
    if problem is not None:
        problem.on_all_ranks = mesh.world_size > 1
        raise problem
    for rank, value in enumerate(told):
        if value is not None:
            raise error_passed_on(value, rank=rank)
    return result  # type: ignore[return-value]


def main_only(mesh: Mesh, work: Callable[[], None]) -> None:
    """Do something on rank 0 while the others wait; where it fails, all raise. Collective.

    Raises:
        MS4Error: what the work raised, on the others word of it.
    """
    everyone(mesh, work if mesh.is_main else lambda: None)


def error_told(error: BaseException) -> dict[str, Any]:
    """An error as JSON values, for other ranks."""
    if isinstance(error, MS4Error):
        return {"text": str(error), "exit_code": error.exit_code}
    exit_code = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        exit_code = error.code
    return {"text": f"{type(error).__name__}: {error}", "exit_code": exit_code}


def error_passed_on(value: dict[str, Any], *, rank: int) -> MS4Error:
    """The error of a rank as the others raise it: the same text and exit code."""
    error = MS4Error(f"rank {rank} has stopped: {value['text']}")
    error.exit_code = value["exit_code"]
    error.on_all_ranks = True
    return error
