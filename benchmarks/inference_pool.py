"""The contestants' processes: started once, kept alive and idle while others are timed, ended with the program.

Exercise it: ``python benchmarks/inference.py --quick``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, Self

import support

PEERS_PYTHON = support.ROOT / ".venv-peers" / "bin" / "python"
PROGRAM = Path(__file__).with_name("inference_worker.py")
OURS = support.OURS
NAMES = (OURS, "transformers", "vLLM", "llama.cpp")
IN_PEERS = {"vLLM", "llama.cpp"}
"""Contestants that live in ``.venv-peers``."""
VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, as everybody else
    "VLLM_MLA_DISABLE": "1",  # its CPU kernel for latent attention knows one width only, that of another model
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class WorkerError(RuntimeError):
    """A contestant failed; the end of its log is in the message."""


class Process:
    """One contestant.

    Args:
        name: one of ``NAMES``.
        model: where the model lies, by layout: ``hf``, ``native``, ``gguf``.
        threads: of the contestant.
        settings: environment variables besides the contestant's own.

    Attributes:
        about: what ``Worker.load`` says: variants, facts, memory.
    """

    def __init__(self, name: str, model: dict[str, str], threads: int, settings: dict[str, str] | None = None) -> None:
        self.name = name
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 # open as long as the process
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" or name not in IN_PEERS}
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        if name == "vLLM":
            # Compiled code is kept between runs of this program.
            environment |= VLLM_ENVIRONMENT | {"VLLM_CACHE_ROOT": str(PEERS_PYTHON.parents[1] / "vllm-cache")}
        python = str(PEERS_PYTHON) if name in IN_PEERS else sys.executable
        self._process = subprocess.Popen(
            [python, str(PROGRAM)],
            env=environment | (settings or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.about = self.ask("load", name=name, model=model, threads=threads)

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            WorkerError: the contestant failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **command}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"its process ended with {self._process.wait()}"}
        if "error" in answer:
            self._process.wait()
            self._log.seek(0)
            tail = "".join(self._log.readlines()[-40:])
            raise WorkerError(f"{self.name}: {answer['error']}\n{tail}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def absent(names: tuple[str, ...]) -> dict[str, str]:
    """Contestants that cannot take part on this machine, and why."""
    found = {}
    for name in names:
        if name in IN_PEERS and not PEERS_PYTHON.exists():
            found[name] = "there is no .venv-peers; `make peers` builds it"
    return found
