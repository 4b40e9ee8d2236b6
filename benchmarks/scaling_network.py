"""A group of ranks on a network of its own, and the bytes that cross it.

``Group`` starts this file under ``unshare --user --net``: it brings the loopback device up, starts the ranks, hands each command on to
all of them and answers with what each says and with the bytes that the device has carried meanwhile. Nobody else is on that device, so
the count is what the ranks sent to each other, TCP's headers and acknowledgements among it, and it is taken in the same way whatever
library sends. Ranks wait on a pipe between commands and use no processor. Where no network can be had of one's own, the count is of the
machine's loopback device and ``own_network`` is False.
Exercise it: ``python benchmarks/scaling.py --quick``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS and IFF_UP of Linux


def has_own_network() -> bool:
    """Whether this system lets a process have a network of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--user", "--map-root-user", "--net", "true"], capture_output=True, check=False).returncode == 0


class Group:
    """Ranks of one contestant: processes that stay, one thread each.

    Attributes:
        name: of the contestant.
        ranks: how many.
        own_network: whether the bytes are those of nobody else.
    """

    def __init__(self, name: str, ranks: int, arguments: list[str]) -> None:
        self.name, self.ranks, self.own_network = name, ranks, has_own_network()
        prefix = ["unshare", "--user", "--map-root-user", "--net"] if self.own_network else []
        command = [*prefix, sys.executable, str(Path(__file__).resolve()), str(ranks), *arguments]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 # closed in close()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT)

    def ask(self, command: str) -> tuple[list[dict[str, Any]], int]:
        """What each rank answers, and the bytes that crossed their network meanwhile.

        Raises:
            RuntimeError: a rank has ended; the last lines that the ranks wrote are in the message.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"{self.name} on {self.ranks} ranks failed:\n{self._log.read()[-3000:]}")
        reply = json.loads(line)
        return reply["ranks"], reply["bytes"]

    def close(self) -> None:
        """End the ranks."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def bring_up_loopback() -> None:
    """Switch on the loopback device of this network; a new one is off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _GET_FLAGS, request))[1]
        if not flags & _UP:
            fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH14x", b"lo", flags | _UP))


def loopback_bytes() -> int:
    """Bytes that the loopback device of this network has sent so far."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def _rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    paths = [str(ROOT / folder) for folder in (".", "kernels", "recipes", "evals")]
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    quiet = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **own, **meeting, **quiet, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _serve(ranks: int, arguments: list[str]) -> None:
    """Start the ranks and answer commands until the pipe closes."""
    bring_up_loopback()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(HERE / "scaling_worker.py"), *arguments]
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=_rank_environment(rank, ranks, port), **options) for rank in range(ranks)]
    try:
        for line in sys.stdin:
            before = loopback_bytes()
            for process in processes:
                _pipe(process.stdin).write(line)
                _pipe(process.stdin).flush()
            replies = [_pipe(process.stdout).readline() for process in processes]
            if not all(replies):
                break
            found = {"ranks": [json.loads(reply) for reply in replies], "bytes": loopback_bytes() - before}
            print(json.dumps(found), flush=True)
    finally:
        for process in processes:
            with contextlib.suppress(BrokenPipeError):
                _pipe(process.stdin).close()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2:])
