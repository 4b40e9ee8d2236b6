"""One evaluation of all three benchmarks, as a user would write it: AIME, LiveCodeBench and AA-LCR in both modes, with a judge nearby."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.code_rows import recorded_rows, write_rows
from support.eval_servers import free_port

from ms4_train.config.evaluation import EvalRun

MODES = {"none": {"temperature": 0.0, "max_tokens": 48}, "high": {"temperature": 0.7, "max_tokens": 64}}


def code_file(folder: Path, data: Path, problems: int) -> Path:
    """Recorded LiveCodeBench problems with statements, in the hub's form: programs and functions by turns."""
    rows = recorded_rows(data)
    chosen: list[dict[str, Any]] = []
    kinds = [[row for row in rows if bool(row["starter_code"]) is is_function] for is_function in (False, True)]
    for pair in zip(*kinds, strict=False):
        chosen += pair
    return write_rows(folder / "test.jsonl", chosen[:problems])


def task_sections(data: Path, code: Path, *, aime: int, lcr: dict[str, Any]) -> list[dict[str, Any]]:
    """The ``tasks:`` section."""
    return [
        {"task": "aime", "years": [2024, 2025], "path": str(data / "aime"), "samples": 1, "limit": aime},
        {"task": "livecodebench", "path": str(code), "samples": 1},
        {"task": "lcr", "samples": 1, **lcr},
    ]


def benchmark_run(store: Path, tasks: Sequence[dict[str, Any]], judge_url: str, **sections: Any) -> EvalRun:
    """The run; ``sections`` name the model or the endpoint."""
    values: dict[str, Any] = {
        "recipe": "eval",
        "store": str(store),
        "label": store.stem,
        "tasks": list(tasks),
        "modes": MODES,
        "judge": {"servers": [{"base_url": judge_url}]},
        "engine": {"max_batch_size": 8},
        "bootstrap_samples": 200,
    }
    return EvalRun.model_validate(values | sections)


@contextlib.contextmanager
def serving(model: Path, log: Path, *arguments: str, seconds: float = 120) -> Iterator[str]:
    """``ms4 serve`` in a process of its own; its address, with the version."""
    port = free_port()
    command = [sys.executable, "-m", "ms4_train.cli", "serve", str(model), "--port", str(port), *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            end = time.monotonic() + seconds
            while not re.search(r"http://127\.0\.0\.1:\d+", log.read_text(errors="replace")):
                assert process.poll() is None, log.read_text(errors="replace")
                assert time.monotonic() < end, "the server has not started"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
