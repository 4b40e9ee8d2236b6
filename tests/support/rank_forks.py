"""Gloo ranks as forks of one warm process, so that a test may kill, stop or hang them for the price of a second and not of ten.

The caller is a script of its own (never pytest), in which torch has started no threads: a fork would not have them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.distributed import free_port, rank_environment

from ms4_train.errors import MS4Error, RankLostError


def import_all(*, with_deepspeed: bool, with_peft: bool = False) -> None:
    """What a rank would import or compile itself, once for all forks; on a busy machine that takes longer than tests wait."""
    from ms4_kernels.native import library

    library()
    if with_peft:
        importlib.import_module("peft")
    if with_deepspeed:
        for name in ("deepspeed.module_inject.auto_ep_layer", "torch._inductor.lowering", "ms4_train.parallel.deepspeed_engine"):
            importlib.import_module(name)


@dataclass
class Ended:
    """How the ranks ended.

    Attributes:
        codes: exit codes; minus the signal where one killed a rank.
        seconds: from the event (or the start) to the end of each rank.
        ends: when each rank ended, by ``time.monotonic``.
        output: what each printed.
        left: process ids that were still there when the time was up; they are killed then.
    """

    codes: list[int]
    seconds: list[float]
    ends: list[float]
    output: list[str]
    left: list[int]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))


def fork_ranks(
    work: Callable[[int], Any],
    folder: Path,
    *,
    ranks: int,
    timeout: float = 60.0,
    event: Callable[[list[int]], Any] | None = None,
    gone: tuple[int, ...] = (),
) -> Ended:
    """Run ``work(rank)`` in forked ranks, as ``ms4`` runs a command, and wait for all of them.

    Args:
        work: what a rank does; its error becomes its exit code, its output goes to a file.
        folder: for the output.
        ranks: how many.
        timeout: seconds after which the ranks that are left are killed.
        event: called with the process ids after the start; the clock of ``Ended.seconds`` begins when it returns.
        gone: ranks that nobody waits for; they are killed at the end (a stopped one cannot end itself).
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = [_fork(work, rank, ranks, port, folder / f"output-{rank}.txt") for rank in range(ranks)]
    if event is not None:
        event(processes)
    begin = time.monotonic()
    codes: dict[int, int] = {}
    seconds: dict[int, float] = {}
    awaited = [rank for rank in range(ranks) if rank not in gone]
    while len(codes) < len(awaited) and time.monotonic() - begin < timeout:
        for rank in awaited:
            if rank not in codes:
                process, status = os.waitpid(processes[rank], os.WNOHANG)
                if process:
                    codes[rank], seconds[rank] = os.waitstatus_to_exitcode(status), time.monotonic() - begin
        time.sleep(0.01)
    left = [processes[rank] for rank in awaited if rank not in codes]
    for rank in range(ranks):
        if rank not in codes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(processes[rank], signal.SIGKILL)
            codes[rank] = os.waitstatus_to_exitcode(os.waitpid(processes[rank], 0)[1])
            seconds[rank] = time.monotonic() - begin
    output = [(folder / f"output-{rank}.txt").read_text() for rank in range(ranks)]
    lasted = [seconds[rank] for rank in range(ranks)]
    return Ended([codes[rank] for rank in range(ranks)], lasted, [begin + each for each in lasted], output, left)


def side_by_side(cases: dict[str, Callable[[], Any]], folder: Path, most: int) -> dict[str, Any]:
    """The results (anything JSON can hold) of all cases, each in a fork of its own; they wait more than they compute."""
    folder.mkdir(parents=True, exist_ok=True)
    running: dict[int, str] = {}
    results: dict[str, Any] = {}

    def reap() -> None:
        process, status = os.wait()
        name = running.pop(process)
        assert status == 0, f"case {name}: {status}"
        results[name] = json.loads((folder / f"{name}.json").read_text())

    for name, work in cases.items():
        if len(running) == most:
            reap()
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                (folder / f"{name}.json").write_text(json.dumps(work()))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        running[process] = name
    while running:
        reap()
    return results


def _fork(work: Callable[[int], Any], rank: int, ranks: int, port: int, output: Path) -> int:
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.environ.update(rank_environment(rank, ranks, port))
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work(rank)
        code = 0
    except RankLostError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except MS4Error as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
