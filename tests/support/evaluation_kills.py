"""``ms4 eval run`` in processes of their own that are really killed at random moments: ``python -m support.evaluation_kills FOLDER SIZE``.

Servers and judge outlive the kills. One evaluation is left alone, another is killed and started again until its kills are used up, and
what was seen is printed as one JSON object for ``tests/reliability/test_evaluation_kills.py``. This process adopts whatever a killed run
leaves behind, so nothing that lives on can hide.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.code_rows import code_row, write_rows
from support.flaky_server import flaky_process, server_stats

from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.registry import build_tasks
from ms4_train.config.eval_tasks import ArithmeticTask

ROOT = Path(__file__).resolve().parents[2]
CONCURRENCY = 8
SLEEP = "import time; time.sleep(0.4)\n"
ADD = "a, b = map(int, input().split())\nprint(a + b)\n"
PROGRAMS = (ADD, SLEEP + ADD, ADD.replace("+", "-"), SLEEP + ADD, ADD + "raise SystemExit(3)\n")
"""Answers to the problems by turns: right, right and slow, wrong, right and slow, right with a bad end."""
_PR_SET_CHILD_SUBREAPER = 36
_GONE_SECONDS = 5.0
WATCHED_SECONDS = 60.0
"""Within which a run reaches the phase that it is to be killed in."""


@dataclass(frozen=True)
class Size:
    """How much is evaluated, in both modes, and at which phases of the run it is killed.

    Attributes:
        lcr: questions of the judge's task; 0 for none.
        kills: phases, in the order in which a run passes them.
    """

    digits: int
    letters: int
    code: int
    lcr: int
    kills: tuple[str, ...]

    @property
    def planned(self) -> int:
        """Samples of the whole evaluation."""
        return 2 * (2 * (self.digits + self.letters + self.code) + self.lcr)


SIZES = {
    "small": Size(13, 0, 2, 0, ("drawing", "grading", "opinions")),
    "large": Size(
        40, 20, 10, 10, ("start",) * 2 + ("drawing",) * 11 + ("grading",) * 3 + ("opinions",) * 3 + ("report",)
    ),
}  # fmt: skip


@dataclass
class Held:
    """What a store holds: the rows that may never change again, and how far the rest is."""

    samples: list[list[Any]] = dataclasses.field(default_factory=list)
    verdicts: list[list[Any]] = dataclasses.field(default_factory=list)
    opinions: int = 0


def environment() -> dict[str, str]:
    paths = [str(ROOT / name) for name in (".", "kernels", "recipes", "evals", "tests")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def write_configuration(folder: Path, size: Size, base_url: str, judge_url: str | None) -> dict[str, Any]:
    """The run's configuration without its store, and the files it names."""
    tasks: list[dict[str, Any]] = [{"task": "arithmetic", "kind": "digits", "problems": size.digits, "samples": 2}]
    if size.letters:
        tasks.append({"task": "arithmetic", "kind": "letters", "problems": size.letters, "samples": 2})
    tasks.append({"task": "livecodebench", "path": str(folder / "code" / "test.jsonl"), "samples": 2})
    if size.lcr:
        questions = list(range(1, 2 * size.lcr, 2))
        tasks.append({"task": "lcr", "path": str(folder / "lcr"), "questions": questions, "samples": 1})
    return {
        "recipe": "eval",
        "label": "scripted",
        "endpoint": {"servers": [{"base_url": base_url}], "kind": "vllm", "concurrency": CONCURRENCY},
        "tasks": tasks,
        "modes": {"none": {"max_tokens": 4096}, "high": {"max_tokens": 4096}},
        "bootstrap_samples": 200,
    } | ({"judge": {"servers": [{"base_url": judge_url}], "kind": "vllm"}} if judge_url else {})


def write_questions(folder: Path, size: Size) -> Path:
    """Files of the tasks, and the table of right answers that the server has; returns the table."""
    table: dict[str, str] = {}
    for kind, problems in (("digits", size.digits), ("letters", size.letters)):
        if problems:
            (task,) = build_tasks([ArithmeticTask.model_validate({"task": "arithmetic", "kind": kind, "problems": problems})])
            table |= {problem.question: problem.gold for problem in task.problems}
    rows = []
    for number in range(size.code):
        statement = f"Print the sum of two integers of contest {number:03d}."
        rows.append(code_row(f"abc{300 + number}_a", question_content=statement))
        table[statement] = f"```python\n{PROGRAMS[number % len(PROGRAMS)]}```"
    write_rows(folder / "code" / "test.jsonl", rows)
    if size.lcr:
        from support.lcr_data import small_questions, write_hub_copy

        write_hub_copy(folder / "lcr", small_questions())
        table |= {f"Question {number}?": f"Answer {number if number % 4 == 1 else 'unknown'}" for number in range(1, 101)}
    path = folder / "table.json"
    path.write_text(json.dumps(table))
    return path


def command(configuration: Path) -> list[str]:
    return [sys.executable, "-m", "support.evaluation_kills", "run", str(configuration)]


def run_command(configuration: str) -> None:
    """``ms4 eval run``; documents that are not the published ones may have any number of tokens, and opinions come and are written slowly,
    so that a kill finds them at it on a quick machine too.
    """
    from ms4_evals import runner
    from ms4_evals.graders.second_opinion import SecondOpinion
    from ms4_evals.tasks.lcr import task as lcr_task
    from ms4_evals.tasks.lcr.tokens import TokenCheck
    from ms4_train.cli.main import main as ms4

    signal.signal(signal.SIGUSR1, lambda *_: tell_where())
    ask = SecondOpinion.ask
    setattr(SecondOpinion, "ask", lambda *arguments: (ask(*arguments), time.sleep(0.01))[0])  # noqa: B010 - pyright knows no patches
    runner._OPINIONS_PER_COMMIT = 10
    lcr_task.check_tokens = lambda chosen: TokenCheck("none", is_exact=False, prompts=len(chosen), longest=0)
    ms4(["eval", "run", configuration])


def tell_where() -> None:
    """Print where every thread and every task of the event loop is."""
    faulthandler.dump_traceback(all_threads=True)
    with contextlib.suppress(RuntimeError):
        for task in asyncio.all_tasks():
            task.print_stack(file=sys.stderr)


def held(store: Path) -> Held:
    """What a store holds that nobody writes to: read from a copy, so that the next run finds the files as the killed one left them."""
    if not store.exists():
        return Held()
    copy = store.with_name("copy.sqlite")
    for ending in ("", "-wal"):
        copy.with_name(copy.name + ending).unlink(missing_ok=True)
        if store.with_name(store.name + ending).exists():
            shutil.copy(store.with_name(store.name + ending), copy.with_name(copy.name + ending))
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        try:
            samples = connection.execute("SELECT sample_id, problem_id, mode, sample_index, seconds, seal FROM samples ORDER BY 1")
            verdicts = connection.execute("SELECT sample_id, grading_id, verdict, extracted, details FROM grades ORDER BY 1, 2")
            return Held(list(map(list, samples)), list(map(list, verdicts)), count_opinions(connection))
        except sqlite3.OperationalError:
            return Held()


def count_opinions(connection: sqlite3.Connection) -> int:
    """Opinions that are asked for at the end of a run."""
    query = "SELECT count(*) FROM grades g JOIN samples s USING (sample_id) WHERE s.problem_id LIKE 'arithmetic%' AND g.opinion IS NOT NULL"
    return connection.execute(query).fetchone()[0]


@dataclass
class Progress:
    samples: int
    verdicts: int
    opinions: int


class Watcher:
    """Sees from outside how far a working run is."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._connection: sqlite3.Connection | None = None

    def look(self) -> Progress:
        try:
            if self._connection is None:
                if not self._store.exists():
                    return Progress(0, 0, 0)
                self._connection = sqlite3.connect(f"file:{self._store}?mode=ro", uri=True)
            samples, verdicts = (self._connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("samples", "grades"))
            return Progress(samples, verdicts, count_opinions(self._connection))
        except sqlite3.OperationalError:
            return Progress(0, 0, 0)

    def close(self) -> None:
        """Before the kill: the run must be the last that had its store open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def is_due(phase: str, seen: Progress, before: Held, more: int, size: Size) -> bool:
    """Whether the run is where it is to be killed, ``more`` samples, verdicts or opinions after what it began with."""
    asked = 4 * (size.digits + size.letters)
    match phase:
        case "start":
            return True
        case "drawing":
            return seen.samples >= min(len(before.samples) + more, size.planned - 1)
        case "grading":
            return seen.samples == size.planned > seen.verdicts > len(before.verdicts)
        case "opinions":
            return seen.opinions >= min(before.opinions + more, asked - 1)
        case _:
            return seen.opinions == asked


def killed_run(configuration: Path, store: Path, phase: str, before: Held, rng: random.Random, size: Size) -> dict[str, Any]:
    """Start a run and kill it in a phase, a random while after that has begun."""
    more = rng.randint(1, max(2, size.planned // 14))
    pause = {"start": rng.uniform(0.1, 2.0), "grading": rng.uniform(0, 0.3)}.get(phase, rng.uniform(0, 0.1))
    with store.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(command(configuration), env=environment(), stdout=log, stderr=log)
        watcher = Watcher(store)
        deadline = time.monotonic() + WATCHED_SECONDS
        while process.poll() is None and time.monotonic() < deadline and not is_due(phase, watcher.look(), before, more, size):
            time.sleep(0.01)
        seen = watcher.look()
        watcher.close()
        if time.monotonic() >= deadline and process.poll() is None:
            process.send_signal(signal.SIGUSR1)  # it does not get on: the log says where it is
            time.sleep(1.0)
        time.sleep(pause)
        process.kill()
        code = process.wait()
    return {"phase": phase, "code": code, "seen": dataclasses.asdict(seen), "is_free": is_free(store), "left": left_behind({process.pid})}


def is_free(store: Path, seconds: float = 1.0) -> bool:
    """Whether the next run would get the store's lock at once. (A program that is just being started closes its copy within that time.)"""
    import fcntl

    path = store.with_name(store.name + ".lock")
    if not path.exists():
        return True
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with path.open("rb") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.01)
    return False


def adopt_orphans() -> None:
    """Become the parent of what descendants leave behind."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def children() -> set[int]:
    numbers: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        numbers.update(map(int, path.read_text().split()))
    return numbers


KNOWN: set[int] = set()
"""Processes of ours that are to live."""


def left_behind(ended: set[int], seconds: float = _GONE_SECONDS) -> list[str]:
    """Command lines of adopted processes that are still there after a while; they are killed."""
    deadline = time.monotonic() + seconds
    while strangers := children() - KNOWN - ended:
        for number in strangers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(number, os.WNOHANG)
        if time.monotonic() > deadline:
            found = [Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") for number in strangers]
            for number in strangers:
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)
            return [text[:300] for text in found]
        time.sleep(0.01)
    return []


def arrivals(base_url: str) -> dict[str, Any]:
    """The server's counts once it has noticed that its client is gone."""
    before: dict[str, Any] = {}
    while True:
        stats = server_stats(base_url)
        if not stats["in_flight"] and stats == before:
            return stats
        before = stats
        time.sleep(0.1)


def one_attempt(configuration: Path, store: Path, phase: str | None, base_url: str, rng: random.Random, size: Size) -> dict[str, Any]:
    """A run with a kill, or to its end, with what it found, drew and left."""
    before, asked = held(store), arrivals(base_url)["attempts"]
    if phase is None:
        with store.with_suffix(".log").open("ab") as log:
            code = subprocess.run(command(configuration), env=environment(), stdout=log, stderr=log, check=False).returncode
        seen: dict[str, Any] = {"phase": "end", "code": code, "left": left_behind(set()), "is_free": is_free(store)}
    else:
        seen = killed_run(configuration, store, phase, before, rng, size)
    after = held(store)
    kept = all(row in after.samples for row in before.samples) and all(row in after.verdicts for row in before.verdicts)
    return seen | {
        "held": len(before.samples),
        "holds": len(after.samples),
        "verdicts": len(after.verdicts),
        "opinions": after.opinions,
        "kept": kept,
        "asked": arrivals(base_url)["attempts"] - asked,
    }


@contextlib.contextmanager
def judge_or_none(size: Size) -> Iterator[str | None]:
    if not size.lcr:
        yield None
        return
    from support.judges import judging

    with judging() as judge:
        yield judge.url


def verified(store: Path) -> int:
    """Records of the store's one run whose seals hold."""
    with ResultStore.read(store) as reader:
        (run,) = reader.runs()
        return reader.verify(run.run_id)


def main(folder: Path, size_name: str, seed: int = 0) -> dict[str, Any]:
    """Evaluate twice, once with kills."""
    adopt_orphans()
    size, rng = SIZES[size_name], random.Random(seed)
    table = write_questions(folder, size)
    result: dict[str, Any] = {"planned": size.planned, "concurrency": CONCURRENCY}
    serving = ("--table", str(table), "--seconds", "0.03")
    with flaky_process(*serving) as straight_url, flaky_process(*serving) as killed_url, judge_or_none(size) as judge_url:
        KNOWN.update(children())
        for name, base_url, phases in (("straight", straight_url, (None,)), ("killed", killed_url, (*size.kills, None))):
            store, configuration = folder / f"{name}.sqlite", folder / f"{name}.yaml"
            values = write_configuration(folder, size, base_url, judge_url)
            configuration.write_text(json.dumps(values | {"store": str(store)}))
            result[name] = [one_attempt(configuration, store, phase, base_url, rng, size) for phase in phases]
            result[f"{name}_server"] = server_stats(base_url)
            result[f"{name}_records"] = verified(store)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return result | {"cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in used)}


def entry(arguments: Sequence[str]) -> None:
    if arguments[0] == "run":
        run_command(arguments[1])
    else:
        print(json.dumps(main(Path(arguments[0]), arguments[1], *map(int, arguments[2:]))))


if __name__ == "__main__":
    entry(sys.argv[1:])
