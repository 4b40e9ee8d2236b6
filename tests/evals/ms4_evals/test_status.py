"""What a store holds and how far it is, beside a real writer in another process."""

import contextlib
import dataclasses
import datetime
import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from support.made_stores import COUNTS_BYTES, bytes_read, failed_sample, fill, made_evaluation, made_run, right_or_wrong, write_store

from ms4_evals.graders.base import Grade
from ms4_evals.statistics.scores import score
from ms4_evals.status import duration, status_table, status_values, store_status, writer_of
from ms4_evals.store.results import ResultStore

NONE, HIGH = (made_evaluation("t", mode, 4, 2) for mode in ("none", "high"))


def rule(evaluation, problem, index):
    """none: complete, half right. high: 0 right, 1 and its samples an error and one that waits, 2 and 3 not drawn."""
    if evaluation.mode == "none":
        return {"seconds": 1.0, "usage_tokens": 10}, Grade("correct" if problem < 2 else "wrong", "1")
    if problem == 0:
        return {"seconds": 4.0, "usage_tokens": 90}, Grade("correct", "1")
    if problem == 1:
        return failed_sample("rate-limit") if index else ({"seconds": 4.0, "usage_tokens": 90}, None)
    return None


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "r.sqlite", {"made": rule}, [NONE, HIGH])


def test_counts_and_score_so_far(path):
    with ResultStore.read(path) as store:
        (run,) = store_status(store)
    none, high = run.evaluations
    assert (none.drawn, none.graded, none.missing, none.errors, none.is_complete) == (8, 8, 0, {}, True)
    assert (high.drawn, high.graded, high.ungraded, high.missing, high.errors, high.is_complete) == (4, 2, 1, 4, {"rate-limit": 1}, False)
    expected = score([[True, True]] * 2 + [[False, False]] * 2, 0.95)
    assert none.score is not None
    assert (none.score.value, none.score.low, none.score.high) == (expected.value, expected.low, expected.high)
    assert (run.is_running, run.answers_per_second, run.seconds_left) == (False, None, None)


@contextlib.contextmanager
def writer(path):
    """Another process that holds the store open to write, until the block ends."""
    script = (
        "import sys, time\nfrom ms4_evals.store.results import ResultStore\n"
        "with ResultStore.open(sys.argv[1]):\n    print('open', flush=True)\n    sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.communicate("", timeout=30)


def test_a_writer_is_seen_and_not_disturbed(path):
    assert writer_of(path) is None
    with writer(path) as process:
        assert writer_of(path) == process.pid
        with ResultStore.read(path) as store:
            (run,) = store_status(store)
        assert run.is_running
        assert run.elapsed is not None
        assert run.elapsed < 600
    assert writer_of(path) is None, "it has ended, its lock file stays"
    assert path.with_name("r.sqlite.lock").exists()


def test_a_process_that_got_the_number_of_a_dead_writer_is_no_writer(path):
    path.with_name("r.sqlite.lock").write_text(str(os.getpid()))
    assert writer_of(path) is None
    for text in ("", "x", "99999999"):
        path.with_name("r.sqlite.lock").write_text(text)
        assert writer_of(path) is None
    with ResultStore.open(path):
        assert writer_of(path) == os.getpid()


def test_speed_and_time_left(path):
    """In 5 seconds: 8 answers of 1 s and 3 of 4 s, so 4 at a time. Left in high: 8 - 3 answers of 4 s, by fours: 5 s.

    The clock is the test's; the session's start has whole seconds, so up to one is lost.
    """
    with ResultStore.open(path) as store:
        ((started,),) = store.select("SELECT started FROM sessions")
        now = datetime.datetime.fromisoformat(started) + datetime.timedelta(seconds=5)
        (run,) = store_status(store, now=now)
        assert (run.is_running, run.elapsed) == (True, 5.0)
        assert run.answers_per_second == pytest.approx(11 / 5)
        assert run.tokens_per_second == pytest.approx((80 + 270) / 5)
        assert run.seconds_left == pytest.approx(5 * 4.0 / 4.0)
        (before,) = store_status(store, now=now - datetime.timedelta(seconds=9))
        assert (before.elapsed, before.seconds_left) == (0.0, None), "a clock that went back"


def test_a_task_without_answers_is_taken_for_average(path):
    fresh = made_evaluation("fresh", "high", 3, 2)
    with ResultStore.open(path) as store:
        fill(store, made_run(), [fresh], lambda *_: None)
        assert store_status(store)[0].seconds_left is None, "nothing has come since the new start"
        fill(store, made_run("other"), [NONE], right_or_wrong(lambda *_: True))
        first, other = store_status(store)
        assert (first.is_running, other.is_running) == (False, True)


def test_values_and_table(path):
    with ResultStore.read(path) as store:
        statuses = store_status(store)
    (run,) = status_values(statuses)["runs"]
    assert (run["running"], run["label"]) == (False, "made")
    assert run["evaluations"][1]["errors"] == {"rate-limit": 1}
    assert run["evaluations"][0]["score_so_far"]["value"] == 0.5
    console = Console(file=io.StringIO(), width=150)
    console.print(status_table(statuses[0]))
    text = console.file.getvalue()
    for phrase in ("4 of 8", "1 waiting", "1 rate-limit", "50.0 [", "not running", "T, 4 problems"):
        assert phrase in text


def test_a_terminal_of_eighty_columns_cuts_no_word(path):
    console = Console(file=io.StringIO(), width=80)
    with ResultStore.read(path) as store:
        console.print(status_table(store_status(store)[0]))
    lines = console.file.getvalue().splitlines()
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    assert all(any(word in line.split() for line in lines) for word in ("problems", "none", "high", "drawn", "graded", "errors"))


def test_other_sampling_is_told_apart(tmp_path):
    short = dataclasses.replace(HIGH, sampling={"max_tokens": 7}, sampling_id="s", column_id="c")
    path = write_store(tmp_path / "r.sqlite", {"made": rule}, [HIGH, short])
    console = Console(file=io.StringIO(), width=80)
    with ResultStore.read(path) as store:
        console.print(status_table(store_status(store)[0]))
    assert "max_tokens 7" in console.file.getvalue()


def test_hostile_labels_do_not_steer_the_terminal(tmp_path):
    path = write_store(tmp_path / "r.sqlite", {"\x1b[31m[bold]x": rule}, [NONE])
    console = Console(file=io.StringIO(), width=150)
    with ResultStore.read(path) as store:
        console.print(status_table(store_status(store)[0]))
    assert "\x1b" not in console.file.getvalue()
    assert "[bold]x" in console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.6, "1 min 00 s"), (190, "3 min 10 s"), (7500, "2 h 05 min"), (3599.4, "59 min 59 s")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.skipif(not COUNTS_BYTES, reason="this system does not count what a process reads")
def test_texts_are_not_read(tmp_path):
    """200 samples of 50 kB: a status may read a tenth of the store. Reading the texts, the control, reads all of it."""
    evaluation = made_evaluation("t", "high", 100, 2)
    path = write_store(tmp_path / "r.sqlite", {"made": lambda e, p, i: ({"thinking": "x" * 50_000}, Grade("correct", "1"))}, [evaluation])
    with ResultStore.read(path) as store:
        start = bytes_read()
        (run,) = store_status(store)
        read = bytes_read() - start
        assert run.evaluations[0].graded == 200
        assert sum(len(row[0]) for row in store.select("SELECT thinking FROM samples")) == 200 * 50_000
        assert bytes_read() - start - read > 0.9 * path.stat().st_size
    assert read < path.stat().st_size / 10
