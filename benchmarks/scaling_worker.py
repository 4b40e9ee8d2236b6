"""One rank of a contestant of ``scaling.py``: builds it, then obeys lines on its standard input, and answers each with a line of JSON.

``settle`` sets the high-water mark of memory back, ``step`` takes an optimizer step, ``memory`` says what is held and what the peak was.
Exercise it: ``python benchmarks/scaling.py --quick``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

import torch
from scaling_contestants import Work, build
from train_step_memory import resident, settle


def main() -> None:
    """Build the contestant named on the command line, say so, and serve."""
    contestant, sizes = sys.argv[1:]
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))  # left to itself, Linux likes to put processes that talk to each other on one core
    os.sched_setaffinity(0, {cores[int(os.environ["RANK"]) % len(cores)]})
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print; answers have the pipe to themselves

    def answer(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    rank = None
    for line in sys.stdin:
        command = line.strip()
        if command == "build":
            imports = settle()
            rank = build(contestant, Work(**json.loads(sizes)))
            answer({"imports_mib": imports, "built_mib": resident("VmHWM")})
        elif command == "settle":
            answer({"settled_mib": settle()})
        elif command == "step":
            assert rank is not None
            wall, cpu = time.perf_counter(), time.process_time()
            loss, norm = rank.step()
            seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            answer({**seconds, "loss": loss, "norm": norm, "counted": rank.counted()})
        elif command == "memory":
            assert rank is not None
            answer({"peak_mib": resident("VmHWM"), "held": rank.held_bytes()})
    if torch.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
