"""Speed of the LiveCodeBench graders: tests per second, two at a time, beside plain Python processes and LiveCodeBench's own grader.

The work is the public tests of every eighth program that the recorded verdicts (``MS4_TEST_DATA``, default ``../shared/data``) count as
passing, some 75 programs and 190 tests. Contestants, in turn, first to last and last to first:

- ``strict``: ours, a fresh process in the sandbox for every test; with ``--unsafe-no-sandbox`` the same without isolation too;
- ``official``: ours, one process in the sandbox for all tests of a program;
- ``python``: a plain process for every test with the same imports, without sandbox, limits and ``site``: what strict adds to;
- ``LiveCodeBench``: ``evaluate_generations_by_problem`` of the package nvidia-livecodebench, a forked child without sandbox for each
  program, where ``--peer`` names a Python that has the package (``pip install --no-deps nvidia-livecodebench; pip install numpy tqdm``).

Each contestant's verdicts are looked at before anything is timed. Wall time is what a user waits; CPU time includes all processes started.
Exercise it: ``python benchmarks/grading.py --repeats 1``.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ms4_evals.graders.livecodebench.comparison import printed_difference, same_value
from ms4_evals.graders.livecodebench.official import grade_official
from ms4_evals.graders.livecodebench.problem import CodeProblem, CodeTest
from ms4_evals.graders.livecodebench.programs import ARGUMENTS, CANDIDATE, FUNCTION_PROGRAM, MAIN, STDIN_PROGRAM
from ms4_evals.graders.livecodebench.strict import StrictGrader
from ms4_evals.graders.livecodebench.values import decode
from ms4_evals.sandbox.base import Sandbox
from ms4_evals.sandbox.opening import open_sandbox
from ms4_train.storage import atomic_write_text

ROOT = Path(__file__).resolve().parent.parent
STEP = 8
WORKERS = 2
STRICT, OFFICIAL, PLAIN, UNSAFE, PEER = "strict", "official", "python", "strict, no sandbox", "LiveCodeBench"
PEER_PROGRAM = Path(__file__).with_name("grading_peer.py")


@dataclass(frozen=True)
class Work:
    """One program and its tests."""

    problem: CodeProblem
    code: str


# ``site`` would read whatever is installed beside this; without it there is no ``exit``, and no numpy on the path.
PLAIN_ARGUMENTS = ("-S", *ARGUMENTS)
PLAIN_START = f"import builtins, sys\nbuiltins.exit = builtins.quit = sys.exit\nsys.path.append({sysconfig.get_path('purelib')!r})\n"

# Runs everything and returns how many programs were accepted.
Contestant = Callable[[Sequence[Work]], int]


def load(folder: Path) -> list[Work]:
    """Every eighth program that was recorded as passing and has public tests, without those whose tests are slow."""
    with gzip.open(folder / "livecodebench" / "crosscheck_o1_mini.json.gz") as stream:
        rows = [row for row in json.load(stream) if row["official_pass"] and row["public_tests"]]
    return [
        Work(
            CodeProblem(
                row["question_id"], row["func_name"], tuple(CodeTest(test["input"], test["output"]) for test in row["public_tests"])
            ),
            row["code"],
        )
        for row in rows[::STEP]
    ]


def strict(sandbox: Sandbox) -> Contestant:
    """Every test in a sandbox of its own."""
    grader = StrictGrader(sandbox)

    def run(works: Sequence[Work]) -> int:
        with ThreadPoolExecutor(WORKERS) as pool:
            return sum(pool.map(lambda work: grader.grade(work.problem, work.code, run_all=True).passed, works))

    return run


def official(sandbox: Sandbox) -> Contestant:
    """All tests of a program in one sandbox."""

    def accepted(work: Work) -> bool:
        return grade_official(sandbox, work.code, work.problem.function, work.problem.tests).passed

    def run(works: Sequence[Work]) -> int:
        with ThreadPoolExecutor(WORKERS) as pool:
            return sum(pool.map(accepted, works))

    return run


def plain(works: Sequence[Work]) -> int:
    """Every test in a plain process, in a folder of its program."""

    def accepted(work: Work) -> bool:
        program = PLAIN_START + (STDIN_PROGRAM if work.problem.function is None else FUNCTION_PROGRAM)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / MAIN).write_text(program)
            (Path(folder) / CANDIDATE).write_text(work.code)
            return all(_plain_test(work.problem, test, folder) for test in work.problem.tests)

    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(accepted, works))


def _plain_test(problem: CodeProblem, test: CodeTest, folder: str) -> bool:
    text = test.input if problem.function is None else f"{json.dumps(problem.function)}\n{test.input}"
    result = subprocess.run([sys.executable, *PLAIN_ARGUMENTS], input=text.encode(), capture_output=True, cwd=folder, check=False)
    if problem.function is None:
        return result.returncode == 0 and printed_difference(result.stdout.decode(), test.output) is None
    return result.returncode == 0 and same_value(decode(result.stdout, plain=True), json.loads(test.output))


def peer(python: Path) -> Contestant:
    """LiveCodeBench's own, in the peer's interpreter; its start is not timed apart, it takes part of a second once per run."""

    def run(works: Sequence[Work]) -> int:
        samples = [
            {
                "code": work.code,
                "function": work.problem.function,
                "inputs": [test.input for test in work.problem.tests],
                "outputs": [test.output for test in work.problem.tests],
            }
            for work in works
        ]
        request = json.dumps({"workers": WORKERS, "samples": samples})
        command = [str(python), str(PEER_PROGRAM)]
        result = subprocess.run(command, input=request, capture_output=True, text=True, check=True)
        return sum(json.loads(result.stdout.splitlines()[-1]))

    return run


def measure(contestants: dict[str, Contestant], works: Sequence[Work], repeats: int) -> dict[str, dict[str, Any]]:
    """Verdicts first, then times, A B C, C B A, A B C."""
    tests = sum(len(work.problem.tests) for work in works)
    accepted = {name: run(works) for name, run in contestants.items()}
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for name in list(contestants) if repeat % 2 == 0 else reversed(list(contestants)):
            begun, used = time.perf_counter(), _cpu_seconds()
            contestants[name](works)
            wall[name].append(time.perf_counter() - begun)
            cpu[name].append(_cpu_seconds() - used)
    return {
        name: {
            "programs_accepted": accepted[name],
            "tests_per_second_median": tests / statistics.median(wall[name]),
            "tests_per_second_max": tests / min(wall[name]),
            "cpu_milliseconds_per_test_median": 1000 * statistics.median(cpu[name]) / tests,
            "wall_seconds": wall[name],
            "cpu_seconds": cpu[name],
        }
        for name in contestants
    }


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def report(results: dict[str, dict[str, Any]], works: Sequence[Work], sandbox_id: str, options: argparse.Namespace) -> None:
    """Print the table and write the JSON result."""
    tests = sum(len(work.problem.tests) for work in works)
    table = Table(title=f"grading: {len(works)} programs, {tests} tests, {WORKERS} at a time; 20 tests / s of strict are wanted")
    for heading in ("grader", "accepted", "tests / s (best)", "CPU ms / test"):
        table.add_column(heading, justify="left" if heading == "grader" else "right")
    for name, row in results.items():
        speed = f"{row['tests_per_second_median']:.1f} ({row['tests_per_second_max']:.1f})"
        table.add_row(name, str(row["programs_accepted"]), speed, f"{row['cpu_milliseconds_per_test_median']:.1f}")
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    result = {
        "program": "grading",
        "command": f"python benchmarks/grading.py --repeats {options.repeats}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "load_before": options.load},
        "versions": {"python": platform.python_version(), "sandbox": sandbox_id, "nvidia-livecodebench": _peer_version(options.peer)},
        "programs": len(works),
        "tests": tests,
        "workers": WORKERS,
        "graders": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.out, json.dumps(result, indent=1) + "\n")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _peer_version(python: Path | None) -> str | None:
    if python is None:
        return None
    code = "import importlib.metadata; print(importlib.metadata.version('nvidia-livecodebench'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Run all contestants there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each contestant (default %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "grading.json", help="JSON result")
    parser.add_argument("--peer", type=Path, help="a Python that has nvidia-livecodebench")
    parser.add_argument("--unsafe-no-sandbox", action="store_true", help="time the strict grader without isolation too")
    options = parser.parse_args()
    options.load = [round(value, 2) for value in os.getloadavg()]
    folder = Path(os.environ.get("MS4_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "livecodebench").is_dir():
        raise SystemExit("MS4_TEST_DATA names no folder of test data with livecodebench/ in it")
    works = load(folder)
    with open_sandbox() as sandbox:
        contestants: dict[str, Contestant] = {STRICT: strict(sandbox), OFFICIAL: official(sandbox), PLAIN: plain}
        if options.unsafe_no_sandbox:
            contestants[UNSAFE] = strict(open_sandbox(unsafe=True))
        if options.peer:
            contestants[PEER] = peer(options.peer)
        else:
            print("LiveCodeBench's own grader is not timed: --peer names no Python that has it", file=sys.stderr)
        report(measure(contestants, works, options.repeats), works, sandbox.sandbox_id, options)


if __name__ == "__main__":
    main()
