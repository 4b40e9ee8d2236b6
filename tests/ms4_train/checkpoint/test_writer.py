"""The writing thread: it gets on visibly, it can be stopped, and it does not end the process it serves."""

import threading
import time

import pytest
from support.run_state import small_engine

from ms4_train.checkpoint import part
from ms4_train.checkpoint.part import HeldPart
from ms4_train.checkpoint.writer import PartWriter
from ms4_train.errors import CheckpointError
from ms4_train.parallel import progress


def writer(folder, **keys):
    return PartWriter(folder, lambda: HeldPart.copy_of(small_engine(steps=1)), **keys)


def test_what_is_to_follow_gets_the_sums_and_comes_last(tmp_path):
    seen = []
    made = writer(tmp_path, then=lambda sums: seen.append((dict(sums), sorted(path.name for path in tmp_path.iterdir()))))
    made.wait()
    assert seen == [(made.sums, sorted(made.sums))]
    assert made.error is None


def test_a_failure_of_what_follows_is_kept(tmp_path):
    def then(sums):
        raise KeyboardInterrupt

    made = writer(tmp_path, then=then)
    made.wait()
    assert isinstance(made.error, CheckpointError)
    assert isinstance(made.error.__cause__, KeyboardInterrupt)


def test_waiting_counts_as_getting_on_only_while_bytes_are_written(tmp_path, monkeypatch):
    opened, write, seen = threading.Event(), part.write_synced, []

    def slow(path, *parts, **keys):
        keys["proceed"](1)
        assert opened.wait(20)
        return write(path, *parts, **keys)

    monkeypatch.setattr(part, "write_synced", slow)
    made = writer(tmp_path)
    threading.Timer(0.6, opened.set).start()
    earlier = progress.listen(seen.append)
    try:
        made.wait()
    finally:
        progress.listen(earlier)
    assert {place.phase for place in seen} <= {"save"}
    assert 1 <= len(seen) <= 4


def test_a_cancelled_writer_writes_nothing_more(tmp_path, monkeypatch):
    opened, write = threading.Event(), part.write_synced

    def waiting(path, *parts, **keys):
        assert opened.wait(20)
        return write(path, *parts, **keys)

    monkeypatch.setattr(part, "write_synced", waiting)
    made = writer(tmp_path, then=lambda sums: pytest.fail("it was cancelled"))
    threading.Timer(0.1, opened.set).start()
    made.cancel()
    assert not made.is_writing
    assert list(tmp_path.iterdir()) == []


def test_cancelling_does_not_wait_for_ever(tmp_path, monkeypatch):
    opened = threading.Event()
    monkeypatch.setattr(part, "write_synced", lambda *arguments, **keys: opened.wait(20))
    made = writer(tmp_path)
    started = time.monotonic()
    made.cancel()
    assert time.monotonic() - started < 8
    assert made.is_writing
    opened.set()
