"""Our client of OpenAI-compatible servers beside others: requests per second, CPU time and memory; and whose answers survive faults.

Everyone asks the same scripted server (in a process of its own) the same questions, 64 at a time, in a process of its own, in turns. Each
answer has some forty tokens and is known, so that every text that comes back is compared: right, wrong, or given up. The second case
injects faults into 30 % of the attempts, of every kind but silence; its time is how long each client thinks it should wait between
attempts, so what counts there are the answers.

lm-eval and inspect_ai run where ``--peers-python`` has them; without it they are left out::

    python -m venv PEERS && PEERS/bin/pip install inspect_ai "lm_eval[api]" openai

Exercise it: ``python benchmarks/eval_client.py --requests 200 --repeats 1``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ms4_train.storage import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PROGRAM = Path(__file__).with_name("eval_client_contestants.py")
TESTS = ROOT / "tests"
HERE = ("ms4-train, streams", "ms4-train, whole replies", "openai + semaphore, streams", "openai + semaphore, whole replies")
ELSEWHERE = ("lm-eval, whole replies", "inspect_ai, whole replies")
CONCURRENCY = 64
MODEL = "scripted-model"
FAULTS = (
    "429-garbage,500,503,reset,close,drip,cut,cut-clean,cut-before-end,invalid-utf8,invalid-json,null-content,wrong-model,duplicate,"
    "error-object,empty-choices,html"
)
TARGET = {"requests_per_second": 100, "peak_mib": 300}


def table(count: int) -> dict[str, str]:
    """Questions and the texts that answer them."""
    thought = " ".join(f"step {number} holds" for number in range(8))
    return {f"What is {number} + {number}?": f"As {thought}, it is \\boxed{{{2 * number}}}." for number in range(count)}


@contextlib.contextmanager
def server(answers: Path, faults: float, port: int = 0) -> Iterator[str]:
    """The scripted server; its address."""
    command = [sys.executable, "-m", "support.flaky_server", "--port", str(port), "--table", str(answers), "--faults", str(faults)]
    process = subprocess.Popen([*command, "--kinds", FAULTS], cwd=TESTS, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["base_url"]
    finally:
        process.terminate()
        process.wait(10)


def ask(python: str, name: str, work: dict[str, Any], expected: dict[str, str]) -> dict[str, Any]:
    """One run of one contestant."""
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "kernels", "recipes", "evals"))
    result = subprocess.run(
        [python, "-P", str(PROGRAM), name],
        input=json.dumps(work),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "PYTHONPATH": path if python == sys.executable else ""},
    )
    if result.returncode != 0:
        raise SystemExit(f"{name}: ended with {result.returncode}\n{result.stderr[-3000:]}")
    said = json.loads(result.stdout.strip().splitlines()[-1])
    answers = said.pop("answers")
    right = sum(answers.get(question) == text for question, text in expected.items())
    lost = sum(answers.get(question) is None for question in expected)
    return {**said, "right": right, "given_up": lost, "wrong": len(expected) - right - lost}


def run_case(title: str, faults: float, count: int, repeats: int, contestants: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """All contestants in turns, A B C, C B A; the server starts anew for each run, so that all meet the same faults."""
    expected = table(count)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in contestants}
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder, "table.json")
        answers.write_text(json.dumps(expected), encoding="utf-8")
        for repeat in range(repeats):
            for name, python in contestants if repeat % 2 == 0 else reversed(contestants):
                with server(answers, faults) as url:
                    work = {
                        "url": url,
                        "model": MODEL,
                        "questions": list(expected),
                        "concurrency": CONCURRENCY,
                        "timeout": 20,
                        "attempts": 9,
                    }
                    runs[name].append(ask(python, name, work, expected))
                print(f"{title}: {name}: {count / runs[name][-1]['seconds']:.0f} requests/s", file=sys.stderr, flush=True)
    return {"name": title, "requests": count, "faults": faults, "clients": {name: summary(count, found) for name, found in runs.items()}}


def summary(count: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs; of answers the worst run."""
    return {
        "requests_per_second": count / statistics.median(run["seconds"] for run in runs),
        "requests_per_cpu_second": count / statistics.median(run["cpu_seconds"] for run in runs),
        "peak_mib": max(run["peak_mib"] for run in runs),
        "right": min(run["right"] for run in runs),
        "wrong": max(run["wrong"] for run in runs),
        "given_up": max(run["given_up"] for run in runs),
        "versions": runs[0]["versions"],
        "failures": sorted({run["failure"] for run in runs if run["failure"]}),
        "seconds": [run["seconds"] for run in runs],
        "cpu_seconds": [run["cpu_seconds"] for run in runs],
    }


def show(cases: Sequence[dict[str, Any]]) -> None:
    """The table."""
    shown = Table(title=f"{CONCURRENCY} requests at a time against a scripted server; medians, of answers the worst run")
    shown.add_column("case", overflow="fold")
    shown.add_column("client")
    for heading in ("requests/s", "requests / CPU s", "peak MiB", "right", "wrong", "given up"):
        shown.add_column(heading, justify="right")
    for case in cases:
        for index, (name, row) in enumerate(case["clients"].items()):
            name = name + " (ended with an error)" if row["failures"] else name
            cells = [
                f"{row[key]:.0f}" for key in ("requests_per_second", "requests_per_cpu_second", "peak_mib", "right", "wrong", "given_up")
            ]
            shown.add_row(case["name"] if index == 0 else "", name, *cells, end_section=index == len(case["clients"]) - 1)
    Console(width=None if sys.stdout.isatty() else 140).print(shown)


def main() -> None:
    """Runs both cases, prints the table, writes the JSON result; ends with 1 when our targets are missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="of the case without faults (default %(default)s); a quarter with")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each client (default %(default)s)")
    parser.add_argument("--peers-python", help="a Python that has lm_eval and inspect_ai")
    parser.add_argument("--out", type=Path, default=RESULTS / "eval_client.json", help="JSON result (default %(default)s)")
    options = parser.parse_args()
    contestants = [(name, sys.executable) for name in HERE]
    if options.peers_python:
        contestants += [(name, options.peers_python) for name in ELSEWHERE]
    cases = [
        run_case("no faults", 0.0, options.requests, options.repeats, contestants),
        run_case("30 % of attempts fail", 0.3, max(options.requests // 4, 1), options.repeats, contestants),
    ]
    show(cases)
    result = {
        "program": "eval_client",
        "command": "python benchmarks/eval_client.py" + (" --peers-python PYTHON" if options.peers_python else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cores": os.cpu_count(), "load_before": os.getloadavg()[2], "python": platform.python_version()},
        "concurrency": CONCURRENCY,
        "target": TARGET,
        "cases": cases,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.out, json.dumps(result, indent=1) + "\n")
    ours = cases[0]["clients"][HERE[0]]
    if ours["requests_per_second"] < TARGET["requests_per_second"] or ours["peak_mib"] > TARGET["peak_mib"]:
        raise SystemExit(f"missed: {TARGET}")


if __name__ == "__main__":
    main()
