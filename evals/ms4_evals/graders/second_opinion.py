"""A second opinion on integer answers from math-verify, kept in a process of its own with a time limit.

The process is started when the first answer comes and reused for all others; it is replaced only when an answer exceeds the limit or
ends it. The opinion never changes a verdict: disagreements are counted and listed, because one of the two graders is then wrong.

Exercise it: ``pytest tests/evals/ms4_evals/graders/test_second_opinion.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Literal

from ms4_train.errors import MissingDependencyError

Opinion = Literal["correct", "wrong", "failed"]

_START_SECONDS = 120.0


class SecondOpinion:
    """math-verify behind a pipe. Use as a context manager; it holds at most one child process.

    Args:
        time_limit_seconds: for one answer; generous, so that a busy machine does not change a report.
        command: how to start the worker (tests pass one that hangs).
    """

    def __init__(self, *, time_limit_seconds: float = 30.0, command: tuple[str, ...] | None = None) -> None:
        self._time_limit_seconds = time_limit_seconds
        self._command = command or (sys.executable, "-m", "ms4_evals.graders.math_verify_worker")
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self.starts = 0

    def __enter__(self) -> SecondOpinion:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def ask(self, answer: str, gold: str) -> Opinion:
        """What math-verify says of a final answer; ``failed`` when it raises, dies, or exceeds the time limit.

        Raises:
            MissingDependencyError: math-verify is not installed or cannot start.
        """
        process = self._process or self._start()
        request = json.dumps({"answer": answer, "gold": gold}).encode("ascii") + b"\n"
        reply = None
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.flush()
            reply = self._read_reply(process, self._time_limit_seconds)
        if reply is None:
            self.close()
            return "failed"
        if "is_correct" not in reply:
            return "failed"
        return "correct" if reply["is_correct"] else "wrong"

    def close(self) -> None:
        """End the child process."""
        process, self._process, self._buffer = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self.starts += 1
        hello = self._read_reply(process, _START_SECONDS)
        if not hello or not hello.get("ready"):
            self.close()
            raise MissingDependencyError("math-verify cannot be started.", fix="pip install math-verify.")
        return process

    def _read_reply(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, object] | None:
        """One line from the child within the time, or None."""
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return None
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return None
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)
