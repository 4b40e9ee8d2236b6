"""What becomes of an evaluation whose store is torn, full or edited: it goes on to the same report, or it says what is wrong; nothing else.

The server is real and answers by a rule. A crash is the state of the files in the middle of a run: every commit is on the disk, in the
write-ahead log, and nobody has closed anything.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.eval_client import shared_second_opinion
from support.evaluation_kills import environment, held
from support.flaky_answers import Rule
from support.flaky_server import FlakyServer, flaky_process, server_stats

from ms4_evals import runner
from ms4_evals.leaderboard.collect import collect_boards
from ms4_evals.store.results import ResultStore
from ms4_evals.tasks.registry import build_tasks
from ms4_recipes import evaluate
from ms4_train.cli.main import app
from ms4_train.config.eval_tasks import ArithmeticTask
from ms4_train.config.evaluation import EvalRun
from ms4_train.errors import EvaluationError, MS4Error

PROBLEMS = 20
PLANNED = 2 * PROBLEMS
CRASHED_AFTER = 30
CONCURRENCY = 4


def table() -> dict[str, str]:
    (task,) = build_tasks([ArithmeticTask.model_validate({"task": "arithmetic", "problems": PROBLEMS})])
    return {problem.question: problem.gold for problem in task.problems}


def values(base_url: str, store: Path, **sections: Any) -> dict[str, Any]:
    return {
        "recipe": "eval",
        "label": "scripted",
        "store": str(store),
        "endpoint": {"servers": [{"base_url": base_url}], "kind": "vllm", "concurrency": CONCURRENCY},
        "tasks": [{"task": "arithmetic", "problems": PROBLEMS}],
        "modes": {"none": {"max_tokens": 4096}, "high": {"max_tokens": 4096}},
        "bootstrap_samples": 200,
    } | sections


@pytest.fixture(scope="module")
def server():
    with FlakyServer(rule=Rule(table())) as started:
        yield started


@pytest.fixture
def run(server, monkeypatch):
    """Runs an evaluation in this process; returns its JSON report and its text."""
    monkeypatch.setattr(runner, "SecondOpinion", lambda: contextlib.nullcontext(shared_second_opinion()))
    monkeypatch.setattr(evaluate, "report_plots", lambda report: {})

    def evaluated(store: Path, **sections: Any) -> tuple[bytes, bytes]:
        path = evaluate.run(EvalRun.model_validate(values(server.base_url, store, **sections)))
        return path.read_bytes(), path.with_suffix(".md").read_bytes()

    return evaluated


@pytest.fixture
def crashed(tmp_path, run, monkeypatch) -> tuple[tuple[bytes, bytes], Path, Path]:
    """The report of an undisturbed run, its finished store, and the files as a crash after thirty samples leaves them."""
    image = tmp_path / "image.sqlite"
    add, counted = ResultStore.add, Counter()

    def copying(store: ResultStore, *arguments: Any) -> int:
        number = add(store, *arguments)
        counted["samples"] += 1
        if counted["samples"] == CRASHED_AFTER:
            for ending in ("", "-wal"):
                shutil.copy(f"{store.path}{ending}", f"{image}{ending}")
        return number

    with monkeypatch.context() as patched:
        patched.setattr(ResultStore, "add", copying)
        report = run(tmp_path / "whole.sqlite")
    assert len(held(image).samples) == CRASHED_AFTER
    return report, tmp_path / "whole.sqlite", image


def placed(image: Path, store: Path, log: bytes) -> Path:
    shutil.copy(image, store)
    store.with_name(store.name + "-wal").write_bytes(log)
    return store


def damaged_logs(log: bytes, count: int) -> list[bytes]:
    """Cut at random places, and with one bit turned or a stretch of zeros in the last third."""
    generator = random.Random(7)
    found = [log[: generator.randrange(len(log))] for _ in range(count)] + [b"", log[:16], log[:-1], log + bytes(5000)]
    for _ in range(count // 2):
        data = bytearray(log)
        data[generator.randrange(2 * len(log) // 3, len(log))] ^= 1 << generator.randrange(8)
        found.append(bytes(data))
        start = generator.randrange(2 * len(log) // 3, len(log))
        found.append(log[:start] + bytes(len(log) - start))
    return found


@pytest.mark.slow
def test_a_torn_log_loses_its_tail_and_nothing_else(tmp_path, run, crashed, server):
    report, _, image = crashed
    log = Path(f"{image}-wal").read_bytes()
    survivors = Counter()
    for number, data in enumerate(damaged_logs(log, 16)):
        store = placed(image, tmp_path / f"torn-{number}.sqlite", data)
        before, asked = held(store), server.attempts.total()
        assert run(store) == report
        after = held(store)
        assert all(row in after.samples for row in before.samples)
        assert len(after.samples) == PLANNED
        assert server.attempts.total() - asked == PLANNED - len(before.samples)
        survivors[len(before.samples)] += 1
    assert len(survivors) > 8, "cuts fell all over the run"
    assert {0, CRASHED_AFTER} <= set(survivors)


def damaged_files(data: bytes, count: int) -> list[bytes]:
    generator = random.Random(11)
    found = [data[: generator.randrange(len(data))] for _ in range(count)] + [b"", data[:100], data[:-1], data[:4096]]
    for _ in range(2 * count):
        changed = bytearray(data)
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        found.append(bytes(changed))
    return found


@pytest.mark.slow
def test_a_torn_or_rotten_store_gives_the_same_report_or_an_error_of_ours(tmp_path, run, crashed):
    report, whole, _ = crashed
    outcomes = Counter()
    for number, data in enumerate(damaged_files(whole.read_bytes(), 30)):
        store = tmp_path / f"rotten-{number}.sqlite"
        store.write_bytes(data)
        try:
            found: Any = run(store)
        except MS4Error as error:
            found = str(error)
        assert found == report or str(store) in found, number
        outcomes["the same" if found == report else "refused"] += 1
    assert outcomes["refused"] > 30, outcomes
    assert outcomes["the same"] > 1, outcomes


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1 none "$2" || exit 99
cp "$3" "$2/run.yaml"; cd "$2"
"$4" -m ms4_train.cli eval run run.yaml >&2; echo "code $?"
cp r.sqlite* "$6"
mount -o remount,size=64m "$2"
"$4" -m ms4_train.cli eval run run.yaml >&2; echo "code $?"
cp r-reports/*.json "$5"
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["32k", "160k", "288k"])
def test_a_full_disk_stops_the_run_with_one_line_and_room_lets_it_go_on(tmp_path, run, server, size):
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow a private tmpfs (unshare -Urm)")
    report = run(tmp_path / "whole.sqlite")
    (tmp_path / "table.json").write_text(json.dumps(table()))
    disk, reports, full = (tmp_path / name for name in ("disk", "reports", "full"))
    for folder in (disk, reports, full):
        folder.mkdir()
    with flaky_process("--table", str(tmp_path / "table.json")) as base_url:
        (tmp_path / "run.yaml").write_text(json.dumps(values(base_url, Path("r.sqlite"))))
        arguments = [size, disk, tmp_path / "run.yaml", sys.executable, reports, full]
        command = ["unshare", "-Urm", "sh", "-c", ON_A_SMALL_DISK, "sh", *map(str, arguments)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
        attempts = server_stats(base_url)["attempts"]
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == ["code 2", "code 0"], done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the disk is full" in line, done.stderr
    stored = len(held(full / "r.sqlite").samples)
    assert stored < PLANNED
    assert stored > 0 or size == "32k"
    assert PLANNED <= attempts <= PLANNED + CONCURRENCY, "what was stored before the disk was full is not drawn again"
    assert [path.read_bytes() for path in reports.iterdir()] == [report[0]]


EDITS = {
    "a verdict": ("UPDATE grades SET verdict = 'correct' WHERE sample_id = {id}", "grade"),
    "an answer": ("UPDATE samples SET answer = '\\boxed{{0}}' WHERE sample_id = {id}", "sample"),
    "a length": ("UPDATE samples SET thinking_tokens = thinking_tokens / 2 WHERE sample_id = {id}", "sample"),
    "an opinion": ("UPDATE grades SET opinion = 'correct' WHERE sample_id = {id}", "grade"),
}


def test_one_edited_record_is_named_by_verify_by_the_next_run_and_by_the_leaderboard(tmp_path, run):
    store = tmp_path / "r.sqlite"
    run(store)
    for edit, kind in EDITS.values():
        edited = tmp_path / "edited.sqlite"
        shutil.copy(store, edited)
        with contextlib.closing(sqlite3.connect(edited)) as connection, connection:
            query = (
                "SELECT sample_id, problem_id, mode FROM samples JOIN grades USING (sample_id)"
                " WHERE verdict = 'wrong' AND thinking_tokens > 9 LIMIT 1"
            )
            number, problem, mode = connection.execute(query).fetchone()
            assert connection.execute(edit.format(id=number)).rowcount == 1
        words = f"a stored {kind} was changed after it was written: {problem}, sample 0, mode {mode}."
        for again in (
            lambda path=edited: app(["eval", "report", str(path), "--verify", "--no-plots"], standalone_mode=False),
            lambda path=edited: run(path),
            lambda path=edited: collect_boards([path]),
        ):
            with pytest.raises(EvaluationError) as caught:
                again()
            assert caught.value.message == words
            assert str(edited) in str(caught.value)


def test_results_of_different_identity_never_share_a_column_or_a_board(tmp_path, run):
    """The same model again: with another length limit, with other problems, with another temperature in one mode."""
    few = [{"task": "arithmetic", "problems": 8}]
    variants = {
        "first": {},
        "again": {"seed": 1},
        "shorter": {"modes": {"none": {"max_tokens": 2048}, "high": {"max_tokens": 2048}}},
        "cooler": {"modes": {"none": {"max_tokens": 4096}, "high": {"max_tokens": 4096, "temperature": 0.2}}},
        "other": {"tasks": [{"task": "arithmetic", "problems": 8, "seed": 2}]},
    }
    stores = []
    for name, sections in variants.items():
        stores.append(tmp_path / f"{name}.sqlite")
        run(stores[-1], **{"label": name, "tasks": few} | sections)
    boards = collect_boards(stores)
    columns = [
        {column.column_id: sorted(row.label for row in board.rows if column.column_id in row.cells) for column in board.columns}
        for board in boards
    ]
    together = sorted(sorted(map(tuple, board.values())) for board in columns)
    assert together == sorted(
        [
            [("other",), ("other",)],
            sorted([("again", "cooler", "first"), ("again", "first"), ("cooler",), ("shorter",), ("shorter",)]),
        ]
    )
    names = [f"{row.label}" for board in boards for row in board.rows]
    assert len(names) == len(set(names)) == len(variants)
