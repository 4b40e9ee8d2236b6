"""Run a script on several gloo ranks of this machine, as torchrun would, with a timeout and a clean end.

``run_ranks`` starts the processes itself, because torchrun costs another import of torch. When one rank fails or time is up, every process
started here is killed (by its own process group) and the test fails with what the ranks printed. Importing torch and deepspeed takes
seconds per rank, so one launch should carry several checks: let the script write its findings as JSON and let the tests look at them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun puts into a rank's environment, one thread per rank, no GPU, and the source folders of this checkout."""
    paths = [str(ROOT / folder) for folder in (".", "kernels", "recipes", "evals", "tests")]
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(paths),
    }


def run_ranks(
    script: Path, *arguments: str, ranks: int = 2, timeout: float = 400, environment: Mapping[str, str] | None = None, check: bool = True
) -> list[str]:
    """Run ``python script arguments...`` on ``ranks`` processes; returns what each printed (stdout and stderr).

    Raises:
        AssertionError: a rank ended with an error or the time was up; not when ``check`` is False, then the exit codes do not matter.
    """
    port = free_port()
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(ranks)]
        processes = [
            subprocess.Popen(
                [sys.executable, str(script), *arguments],
                env={**rank_environment(rank, ranks, port), **(environment or {})},
                stdout=logs[rank],
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )
            for rank in range(ranks)
        ]
        stack.callback(_kill, processes)
        reason = _wait(processes, time.monotonic() + timeout)
        outputs = list(_read(logs))
    if check and reason is not None:
        tails = "\n".join(f"--- rank {rank}\n{output[-6000:]}" for rank, output in enumerate(outputs))
        raise AssertionError(f"{script.name}: {reason}\n{tails}")
    return outputs


def run_torchrun(*arguments: str, ranks: int = 2, timeout: float = 400) -> str:
    """Run ``torchrun --nproc-per-node RANKS arguments...``, as a user would; returns what it printed (stdout and stderr).

    Raises:
        AssertionError: it ended with an error or the time was up. torchrun ends its ranks itself when it is asked to stop.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    own = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in rank_environment(0, 1, 0).items() if key not in own}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*launcher, *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            reason = _wait([process], time.monotonic() + timeout)
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            _kill([process])
        (output,) = _read([log])
    if reason is not None:
        raise AssertionError(f"torchrun {' '.join(arguments)}: {reason}\n{output[-6000:]}")
    return output


def _wait(processes: list[subprocess.Popen[bytes]], deadline: float) -> str | None:
    while True:
        codes = [process.poll() for process in processes]
        failed = [f"rank {rank} ended with code {code}" for rank, code in enumerate(codes) if code]
        if failed:
            return ", ".join(failed)
        if all(code == 0 for code in codes):
            return None
        if time.monotonic() > deadline:
            return "time is up"
        time.sleep(0.05)


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process.pid) == process.pid:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
        process.wait()


def _read(logs: list) -> Iterator[str]:
    for log in logs:
        log.seek(0)
        yield log.read()
