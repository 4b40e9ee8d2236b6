"""Ranks that only add numbers, and one of them dies, hangs or fails. ``python watch_worker.py FOLDER`` prints a report of all cases."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from support.rank_forks import fork_ranks, side_by_side

from ms4_train.config.schema import ParallelSection
from ms4_train.errors import ConfigError, TrainingError
from ms4_train.parallel import init_mesh, progress
from ms4_train.parallel.watch import watched

TIMEOUT = 2
STEPS = 4


def run(rank, disturb, *, timeout=TIMEOUT, steps=STEPS, collective=30):
    """Four steps of three phases, each with a sum over the ranks; ``disturb(rank, place)`` is called at each."""
    torch.set_num_threads(1)
    mesh = init_mesh(ParallelSection(timeout_seconds=collective))
    progress.listen(lambda place: disturb(mesh.rank, place))
    with watched(mesh, timeout_seconds=timeout):
        for step in range(1, steps + 1):
            for phase in ("forward", "optimizer", "save"):
                progress.at(phase, step)
                mesh.all_reduce_sum(1.0)
    mesh.close()


def at(who, phase, step, do):
    """Call ``do`` in a rank at a place."""
    return lambda rank, place: do() if (rank, place.phase, place.step) == (who, phase, step) else None


def kill_self(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def fail():
    raise ConfigError("is odd.", key="training.seed", fix="make it even.")


def break_down():
    raise ValueError("a defect")


def fail_together():
    error = TrainingError("the same on every rank.")
    error.on_all_ranks = True
    time.sleep(0.1 * int(os.environ["RANK"]))
    raise error


def hold_a_child():
    """Fork a process that keeps what it inherits, and die."""
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
    kill_self()


def nothing(rank, place):
    pass


def busy(rank, place):
    """One rank works longer than the timeout in one step, but gets on."""
    if (rank, place.phase, place.step) == (0, "forward", 2):
        for _ in range(6):
            time.sleep(TIMEOUT / 4)
            progress.at("validation")


def cases(folder):
    def forked(name, disturb, ranks=2, **keys):
        options = {key: keys.pop(key) for key in ("event", "gone") if key in keys}
        return fork_ranks(lambda rank: run(rank, disturb, **keys), folder / name, ranks=ranks, timeout=25, **options).report()

    yield "clean", lambda: forked("clean", nothing, ranks=3)
    yield "busy", lambda: forked("busy", busy, collective=TIMEOUT)
    yield "killed", lambda: forked("killed", at(1, "optimizer", 3, kill_self), ranks=3)
    yield "hub killed", lambda: forked("hub killed", at(0, "save", 2, kill_self), ranks=3)
    yield "exit", lambda: forked("exit", at(1, "forward", 2, lambda: os._exit(0)))
    yield "with a child", lambda: forked("with a child", at(1, "forward", 2, hold_a_child))
    yield "stopped", lambda: forked("stopped", at(1, "forward", 2, lambda: kill_self(signal.SIGSTOP)), gone=(1,))
    yield "hub stopped", lambda: forked("hub stopped", at(0, "forward", 2, lambda: kill_self(signal.SIGSTOP)), gone=(0,))
    yield "stuck", lambda: forked("stuck", at(1, "forward", 2, lambda: time.sleep(60)), ranks=3)
    yield "hub stuck", lambda: forked("hub stuck", at(0, "save", 2, lambda: time.sleep(60)))
    yield "all stuck", lambda: forked("all stuck", lambda rank, place: time.sleep(60) if place.step == 2 else None)
    yield "failed", lambda: forked("failed", at(1, "forward", 2, fail), ranks=3)
    yield "hub failed", lambda: forked("hub failed", at(0, "forward", 2, fail))
    yield "defect", lambda: forked("defect", at(1, "forward", 2, break_down))
    yield "together", lambda: forked("together", lambda rank, place: fail_together() if place.step == 3 else None, ranks=3)
    yield "continued", lambda: continued(folder / "continued")
    yield "control", lambda: control(folder / "control")


def continued(folder):
    """A stopped rank is continued after the others are gone."""

    def wake(processes):
        time.sleep(TIMEOUT + 6)
        os.kill(processes[1], signal.SIGCONT)

    stop = at(1, "forward", 2, lambda: kill_self(signal.SIGSTOP))
    return fork_ranks(lambda rank: run(rank, stop), folder, ranks=2, timeout=10, event=wake).report()


def control(folder):
    """The same stop without a watch: nobody finds out, and the other rank hangs until the test ends it."""

    def unwatched(rank):
        torch.set_num_threads(1)
        mesh = init_mesh(ParallelSection(timeout_seconds=30))
        for step in range(1, STEPS + 1):
            if (rank, step) == (1, 2):
                kill_self(signal.SIGSTOP)
            mesh.all_reduce_sum(1.0)

    return fork_ranks(unwatched, folder, ranks=2, timeout=TIMEOUT + 6, gone=(1,)).report()


def main():
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    chosen = [(name, work) for name, work in cases(folder) if not names or name in names]
    print(json.dumps(side_by_side(dict(chosen), folder, most=6)))


if __name__ == "__main__":
    main()
